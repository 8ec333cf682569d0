"""The command line's commands, by what they are for. Heavy imports stay inside them."""
