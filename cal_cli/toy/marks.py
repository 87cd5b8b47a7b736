"""Texts whose visually correlated words are known: the generator writes them in braces.

`"a {red} {ring}"` is the text "a red ring", in which "red" and "ring" can only be known by looking.
"""

import re

MARKED = re.compile(r"\{([^{}]*)\}")


def unmark(text: str) -> tuple[str, list[list[int]]]:
    """Remove the braces; also return begin and end of each correlated word in the text, in characters."""
    parts, spans, length = [], [], 0
    for number, part in enumerate(MARKED.split(text)):  # every second part was in braces
        if number % 2:
            spans.append([length, length + len(part)])
        parts.append(part)
        length += len(part)
    return "".join(parts), spans


def mark_words(text: str) -> str:
    """Put each word of a text in braces."""
    return " ".join(f"{{{word}}}" for word in text.split())


def count_words(text: str) -> int:
    """Count the words of a text in braces."""
    return len(MARKED.findall(text))
