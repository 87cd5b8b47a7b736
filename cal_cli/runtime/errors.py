"""The error for input that cannot be used; the command line reports it in one sentence with exit code 2."""

LONGEST = 200  # characters of a name in a message


class InputError(ValueError):
    """A wrong value, path or file. The message says what was given, what is allowed and what to do."""


class SettingError(InputError):
    """A setting of a wrong type, or outside its range: it was typed wrong."""


def shorten(name: str) -> str:
    """Return a name from the data, of a file or a sample, as it appears in messages: not too long, and printable."""
    shown = name[:LONGEST] if name.isprintable() else repr(name[:LONGEST])
    return f"{shown}..." if len(name) > LONGEST else shown
