"""Convert the conversations of other formats to LLaVA's: chat messages, question and answer pairs, captions."""

import base64
import binascii
from typing import Any

from cal_cli.data.llava_json import parse_line
from cal_cli.runtime.errors import InputError

TALKS = (
    "conversations",
    "messages",
    "texts",
    "json",
    "caption",
    "txt",
    "text",
)  # columns of conversations; the first that exists is used
STRUCTURED = ("conversations", "messages", "texts", "json")  # text in them is JSON
IMAGE_PARTS = ("image", "image_url")  # types of a message's parts
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def unwrap(talk: Any) -> Any:
    """Return the conversation of a row, or of the JSON object of a tar shard; JSON text is parsed."""
    while isinstance(talk, dict):
        found = [name for name in TALKS if talk.get(name) is not None]
        if not found:
            break
        value = talk[found[0]]
        talk = parse_line(value) if found[0] in STRUCTURED and isinstance(value, str) else value
    return talk


def make_turns(talk: Any, images: int) -> Any:
    """Convert a conversation from any format of `load_conversations` to LLaVA's; return anything else unchanged.

    If no turn marks the place of the images, they come first.
    """
    if isinstance(talk, str):
        turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": talk}]
    elif isinstance(talk, list) and talk and all(isinstance(turn, dict) for turn in talk):
        if "role" in talk[0]:
            turns = [
                {"from": ROLES.get(str(turn.get("role")), turn.get("role")), "value": join_text(turn.get("content"))}
                for turn in talk
            ]
        elif "user" in talk[0]:
            pairs = [(("human", turn.get("user")), ("gpt", turn.get("assistant"))) for turn in talk]
            turns = [{"from": speaker, "value": value} for pair in pairs for speaker, value in pair]
        else:
            turns = [{"from": turn.get("from"), "value": turn.get("value")} for turn in talk]
    else:
        return talk
    asked = [turn for turn in turns if turn["from"] == "human"]
    marked = any("<image>" in str(turn["value"]) for turn in turns)
    if images and asked and not marked and isinstance(asked[0]["value"], str):
        asked[0]["value"] = f"{'<image>' * images}\n{asked[0]['value']}".rstrip("\n")
    return turns


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
    found = [find_carried(part) for part in parts if part.get("type") in IMAGE_PARTS]
    return found if any(found) else []


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
    if carried.startswith("data:"):
        try:
            return base64.b64decode(carried.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"its image is a data URL that is not base64 ({error})") from error
    if "://" in carried and not carried.startswith("file://"):
        raise InputError(f"its image is at {carried:.80}: only data URLs and files are read; download it first")
    return carried.removeprefix("file://")
