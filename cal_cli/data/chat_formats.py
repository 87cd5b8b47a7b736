"""Convert the conversations of other formats to LLaVA's: chat messages, question and answer pairs, captions."""

from typing import Any

from cal_cli.data.llava_json import parse_line

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
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def make_turns(talk: Any, images: int) -> Any:
    """Convert a conversation from any format of `load_conversations` to LLaVA's; return anything else unchanged.

    If no turn marks the place of the images, they come first.
    """
    if isinstance(talk, dict):  # the JSON object of a tar shard, or a row with one pair
        found = [name for name in TALKS if talk.get(name) is not None]
        if not found:
            return talk
        value = talk[found[0]]
        is_json = found[0] in STRUCTURED and isinstance(value, str)
        return make_turns(parse_line(value) if is_json else value, images)
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
        isinstance(part, dict) and part.get("type") in ("text", "image") for part in content
    )
    if not known:
        return content
    return "".join("<image>" if part.get("type") == "image" else part.get("text") or "" for part in content)
