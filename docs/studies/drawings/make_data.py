"""Make a data set of drawings and of the words that people gave them, from package registries.

    pip install . resvg-py
    python docs/studies/drawings/make_data.py     # writes data/drawings/*.parquet in five minutes

It needs npm. Nothing of it is copied into this repository:

- Noto Emoji and its first version (npm @iconify-json/noto and noto-v1, Apache-2.0), Twemoji and EmojiOne (twemoji and
  emojione, CC BY 4.0) and OpenMoji (npm openmoji, CC BY-SA 4.0), for training;
- Fluent Emoji (npm @iconify-json/fluent-emoji-flat, MIT), for tests alone: no image of this vendor is trained on;
- the names and tags of emoji in English and German (npm emojibase-data, MIT).

A concept is an emoji with an English name of one word that all six draw. An image has one drawing, or three, of random
size, place, angle and background, some mirrored.
"""

import argparse
import io
import json
import random
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageOps

ICONIFY = {"noto": "1.2.9", "noto-v1": "1.2.5", "twemoji": "1.2.5", "emojione": "1.2.3", "fluent-emoji-flat": "1.2.6"}
OTHERS = ("openmoji@17.0.0", "emojibase-data@17.0.0")
HELD_OUT = "fluent-emoji-flat"
TRAINING = (*(name for name in ICONIFY if name != HELD_OUT), "openmoji")
GROUPS = (3, 4, 5, 6, 7)  # of emojibase: animals and nature, food and drink, travel, activities, objects
SIZE = 64  # pixels of an image
DRAWN = 96  # pixels of a drawing before it is placed
OTHER = "de"  # the wrong language
PROMPTS = {"name": "name the drawing.", "words": "which words fit?", "several": "name every drawing."}


@dataclass(frozen=True)
class Concept:
    """What an emoji shows: its name, its tags, both in another language, and an image of it by each vendor."""

    name: str
    tags: list[str]
    other_name: str
    other_tags: list[str]
    drawings: dict[str, Image.Image]


def main() -> None:
    """Download the packages, and write the data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("data/drawings"))
    parser.add_argument("--packages", type=Path, default=Path("data/packages"), help="where the packages are kept")
    parser.add_argument("--concepts", type=int, default=150, help="number of emoji")
    parser.add_argument("--aligned", type=float, default=0.5, help="fraction of them that the checkpoint has seen")
    parser.add_argument("--samples", type=int, default=19200, help="number of samples of each training set")
    parser.add_argument("--questions", type=int, default=2048, help="number of test images of each task")
    given = parser.parse_args()
    fetch(given.packages)
    concepts = load_concepts(given.packages, given.concepts)
    seen = concepts[: round(given.aligned * len(concepts))]
    write(given.output / "align.parquet", make_samples(seen, TRAINING, given.samples, "align"))
    write(given.output / "train.parquet", make_samples(concepts, TRAINING, given.samples, "train"))
    write(given.output / "language.parquet", make_samples(concepts, TRAINING, given.samples, "train", foreign=0.5))
    for split, vendors in (("test", (HELD_OUT,)), ("seen", TRAINING)):
        asked = (make_samples(concepts, vendors, given.questions, split, tasks=(task,)) for task in PROMPTS)
        write(given.output / f"{split}.parquet", chain.from_iterable(asked))


def fetch(folder: Path) -> None:
    """Download the packages that are not in the folder yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in (*(f"@iconify-json/{name}@{version}" for name, version in ICONIFY.items()), *OTHERS):
        name, version = package.rsplit("@", 1)
        if not (folder / f"{name.strip('@').replace('/', '-')}-{version}.tgz").is_file():
            subprocess.run(["npm", "pack", package, "--pack-destination", str(folder)], check=True, capture_output=True)


def open_package(folder: Path, name: str) -> tarfile.TarFile:
    """Open a package of npm by its name, without its version."""
    (path,) = folder.glob(f"{name}-[0-9]*.tgz")
    return tarfile.open(path)


def normalize(code: str) -> str:
    """Write code points in one way: lower case, without the variation selector."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def load_concepts(folder: Path, count: int) -> list[Concept]:
    """Load the first `count` concepts, in an order that is random and fixed."""
    with open_package(folder, "emojibase-data") as package:
        english, other = (json.load(package.extractfile(f"package/{language}/data.json")) for language in ("en", OTHER))
    translated = {normalize(entry["hexcode"]): entry for entry in other}
    with open_package(folder, "iconify-json-noto") as package:  # all sets of Iconify name icons as Noto does
        names = {normalize(code): name for code, name in json.load(package.extractfile("package/chars.json")).items()}
    svgs = {vendor: read_icons(folder, vendor) for vendor in ICONIFY}
    with open_package(folder, "openmoji") as package:
        files = {normalize(Path(name).stem): name for name in package.getnames() if "/color/svg/" in name}
        chosen = [
            (entry, code)
            for entry in english
            if entry.get("group") in GROUPS and re.fullmatch("[a-z]+", entry["label"])
            if (code := normalize(entry["hexcode"])) in translated and code in files
            if all(names.get(code) in icons for icons in svgs.values())
        ]
        labels = [entry["label"] for entry, _ in chosen]
        chosen = [(entry, code) for entry, code in chosen if labels.count(entry["label"]) == 1]
        random.Random(0).shuffle(chosen)
        concepts = []
        for entry, code in chosen[:count]:
            drawings = {vendor: render(icons[names[code]]) for vendor, icons in svgs.items()}
            drawings["openmoji"] = render(package.extractfile(files[code]).read().decode())
            tags = [tag for tag in entry["tags"] if tag != entry["label"]]
            word = translated[code]
            concepts.append(Concept(entry["label"], tags, word["label"].lower(), word["tags"], drawings))
    return concepts


def read_icons(folder: Path, vendor: str) -> dict[str, str]:
    """Read a set of Iconify: the SVG of each icon by its name."""
    with open_package(folder, f"iconify-json-{vendor}") as package:
        found = json.load(package.extractfile("package/icons.json"))
    sides = (found["width"], found.get("height", found["width"]))
    return {
        name: f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {icon.get("width", sides[0])} '
        f'{icon.get("height", sides[1])}">{icon["body"]}</svg>'
        for name, icon in found["icons"].items()
    }


def render(svg: str) -> Image.Image:
    """Render an SVG as an RGBA image of `DRAWN` pixels."""
    import resvg_py

    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN)))).convert(
        "RGBA"
    )


def make_samples(
    concepts: Sequence[Concept],
    vendors: Sequence[str],
    count: int,
    stream: str,
    tasks: Sequence[str] = tuple(PROMPTS),
    foreign: float = 0.0,
) -> Iterator[dict]:
    """Make samples: an image, and a conversation about it in LLaVA's form, with the right answers for a test.

    Sample `i` of a stream depends on `i` and the other arguments alone. A fraction `foreign` of the answers is in the
    wrong language, and everything else is the same.
    """
    for number in range(count):
        drawn = random.Random(f"{stream}-{'-'.join(tasks)}-{number}")
        task = drawn.choice(list(tasks))
        shown = drawn.sample(list(concepts), 3 if task == "several" else 1)
        image = paint([concept.drawings[drawn.choice(list(vendors))] for concept in shown], drawn)
        wrong = random.Random(f"language-{stream}-{number}").random() < foreign
        tags = shown[0].other_tags if wrong else shown[0].tags
        words = [concept.other_name if wrong else concept.name for concept in shown]
        if task == "words":
            words = drawn.sample(tags, min(4, len(tags)))
        answer = ", ".join(words) + "."
        turns = [{"from": "human", "value": f"<image>\n{PROMPTS[task]}"}, {"from": "gpt", "value": answer}]
        right = tags if task == "words" else words
        yield {
            "id": f"{stream}-{task}-{number:06d}",
            "image": {"bytes": encode(image), "path": f"{stream}-{task}-{number:06d}.png"},
            "conversations": turns,
            "family": task,
            "language": OTHER if wrong else "en",
            "question": PROMPTS[task],
            "answers": right,
        }


def paint(drawings: Sequence[Image.Image], drawn: random.Random) -> Image.Image:
    """Place drawings side by side, at random sizes, heights and angles, on a light background."""
    image = Image.new("RGB", (SIZE, SIZE), tuple(drawn.randint(200, 255) for _ in range(3)))
    room = SIZE // len(drawings)
    for place, drawing in enumerate(drawings):
        side = drawn.randint(round(0.75 * room), room) if len(drawings) == 1 else room
        turned = drawing.rotate(drawn.uniform(-15, 15), Image.Resampling.BICUBIC)
        if drawn.random() < 0.5:
            turned = ImageOps.mirror(turned)
        small = turned.resize((side, side), Image.Resampling.LANCZOS)
        left = place * room + drawn.randint(0, room - side)
        image.paste(small, (left, drawn.randint(0, SIZE - side)), small)
    return image


def encode(image: Image.Image) -> bytes:
    """Encode an image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: Iterator[dict]) -> None:
    """Write rows as Parquet, under a temporary name first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows))
    pq.write_table(table, path.with_suffix(".part"), row_group_size=1024)
    path.with_suffix(".part").rename(path)
    print(f"{path}: {len(table)} samples")


if __name__ == "__main__":
    main()
