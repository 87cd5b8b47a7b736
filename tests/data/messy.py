"""A folder as real data sets are: good samples, and one of each kind of bad one."""

import json

import numpy as np
from PIL import Image


def shown(identity, image, *turns):
    turns = turns or ("<image>\nwhat?", "a red ring")
    return {
        "id": identity,
        "image": image,
        "conversations": [{"from": ("human", "gpt")[n % 2], "value": value} for n, value in enumerate(turns)],
    }


def write_messy(folder, good=30):
    """Write `images/` and the entries; return them, and what is wrong with each bad one by its id."""
    images = folder / "images"
    images.mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(good):
        Image.fromarray(random.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(images / f"{number}.png")
    (folder / "secret.png").write_bytes((images / "0.png").read_bytes())
    (images / "truncated.png").write_bytes((images / "0.png").read_bytes()[:900])
    (images / "text.png").write_text("not a picture")
    Image.new("1", (20000, 10000)).save(images / "bomb.png")
    Image.new("1", (4000, 3000)).save(images / "large.png")
    entries = [shown(f"good{number}", f"{number}.png") for number in range(good)]
    entries.append({"id": "words", "conversations": shown("", "", "what?", "two")["conversations"]})
    bad = {
        "missing": ("none.png", "is not in"),
        "outside": ("../secret.png", "leaves the folder"),
        "truncated": ("truncated.png", "cannot be read as an image"),
        "text": ("text.png", "cannot be read as an image"),
        "bomb": ("bomb.png", "cannot be read as an image"),
        "large": ("large.png", "4000 x 3000 pixels, more than 10000000"),
    }
    for place, (name, (image, _)) in enumerate(bad.items()):
        entries.insert(3 * place, shown(name, image))
    told = {name: problem for name, (_, problem) in bad.items()}
    for name, turns, problem in (
        ("silent", ("<image>\nwhat?",), "turns must go human, gpt"),
        ("backwards", ("a red ring", "<image>\nwhat?"), "human turns only"),
        ("no_marker", ("what?", "a red ring"), "its turns contain '<image>' 0 times"),
        ("two_markers", ("<image><image>what?", "a red ring"), "its turns contain '<image>' 2 times"),
        ("long", ("<image>\n" + "what? " * 80, "a red ring"), "no supervised token"),
    ):
        entries.insert(5, shown(name, "1.png", *turns))
        told[name] = problem
    return entries, told


def write_lines(entries, path):
    """As JSON lines, one of them cut in the middle."""
    lines = [json.dumps(entry) for entry in entries]
    path.write_text("\n".join([lines[0], lines[1][:40], *lines[1:]]) + "\n")
