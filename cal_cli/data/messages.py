"""Conversations of other formats (chat messages, question and answer pairs, captions), and the images they carry."""

from typing import Any

from cal_cli.data.formats import TALKS
from cal_cli.data.images import decode_inline
from cal_cli.data.validate import parse_line
from cal_cli.runtime.errors import InputError

CAPTIONS = ("caption", "txt", "text")
STRUCTURED = ("conversations", "messages", "texts", "json")  # text in them is JSON
IMAGE_PARTS = ("image", "image_url")  # types of a message's parts
MESSAGE_KEYS = ("role", "content", "from", "value", "user", "assistant", "source", "id", "name")
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def is_talk(document: Any) -> bool:
    """Return whether a JSON document, or its text, is a conversation, a caption, or an object that has one."""
    parsed = parse_line(document) if isinstance(document, str) else document
    return not isinstance(parsed, dict) or any(parsed.get(name) is not None for name in TALKS)


def unwrap(talk: Any) -> Any:
    """Return the conversation of a row, or of the JSON object of a tar shard; JSON text is parsed."""
    while isinstance(talk, dict):
        keys = [name for name in TALKS if talk.get(name) is not None]
        if not keys:
            break
        value = talk[keys[0]]
        talk = parse_line(value) if keys[0] in STRUCTURED and isinstance(value, str) else value
    return talk


def make_turns(talk: Any) -> Any:
    """Convert a conversation from any format of `load_conversations` to LLaVA's; return anything else unchanged."""
    if isinstance(talk, str):
        return [{"from": "human", "value": ""}, {"from": "gpt", "value": talk}]
    if not (isinstance(talk, list) and talk and all(isinstance(turn, dict) for turn in talk)):
        return talk
    if "role" in talk[0]:
        return [
            {"from": ROLES.get(str(turn.get("role")), turn.get("role")), "value": join_text(turn.get("content"))}
            for turn in talk
        ]
    if "user" in talk[0]:
        pairs = [(("human", turn.get("user")), ("gpt", turn.get("assistant"))) for turn in talk]
        return [{"from": speaker, "value": value} for pair in pairs for speaker, value in pair]
    return [{"from": turn.get("from"), "value": turn.get("value")} for turn in talk]


def join_text(content: Any) -> Any:
    """Return a message's text, with `<image>` for each image; return content of any other kind unchanged."""
    known = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in ("text", *IMAGE_PARTS) for part in content
    )
    if not known:
        return content
    return "".join("<image>" if part["type"] in IMAGE_PARTS else part.get("text") or "" for part in content)


def find_message_images(talk: Any) -> list[Any]:
    """Find the images that messages carry themselves, as in OpenAI's format, in their order.

    Returns:
        For each image its contents, a data URL, a path or a URL; empty if the messages only mark places of images.
    """
    messages = talk if isinstance(talk, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    images = [find_carried(part) for part in parts if part.get("type") in IMAGE_PARTS]
    return images if any(images) else []


def find_carried(part: dict) -> Any:
    """Return what a message's image part carries; None if it only marks a place."""
    for key in ("image_url", "image", "url", "path"):
        value = part.get(key)
        if isinstance(value, dict):
            value = next((value[inner] for inner in ("url", "bytes", "path") if value.get(inner)), None)
        if value:
            return value
    return None


def read_carried(carried: Any) -> bytes | str:
    """Return the contents of an image that a message carries, or the name of its file.

    Raises InputError for an address on the web, a data URL that cannot be decoded, or anything else.
    """
    if isinstance(carried, bytes):
        return carried
    if not isinstance(carried, str):
        raise InputError(f"its image is {carried!r:.80}, not a data URL or the name of a file")
    if (inline := decode_inline(carried)) is not None:
        return inline
    if "://" in carried and not carried.startswith("file://"):
        raise InputError(f"its image is at {carried:.80}: only data URLs and files are read; download it first")
    return carried.removeprefix("file://")
