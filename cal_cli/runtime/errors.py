"""The error for input that cannot be used; the command line reports it in one sentence with exit code 2."""


class InputError(ValueError):
    """A wrong value, path or file. The message says what was given, what is allowed and what to do."""
