"""`python -m recombinator`: the same as the command `recombinator`."""

from recombinator.cli import main

if __name__ == "__main__":
    main()
