"""The one error that means "what was given cannot be used"; the command line ends it with exit code 2."""


class InputError(ValueError):
    """A wrong value, path or file. The message says what was given, what is allowed and what to do."""
