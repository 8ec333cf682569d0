"""The one exception that the command line turns into a sentence and exit status 2."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and the remedy."""


def remedy(extra: str) -> str:
    """How to get an extra: from the checkout, since the package index has another project of this name."""
    return f"in the checkout: pip install '.[{extra}]'"
