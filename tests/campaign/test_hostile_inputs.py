"""Generated entries, images, table rows and questions: each is accepted, a named bad sample, or one sentence.

`CAMPAIGN_EXAMPLES` is the number of examples of each kind, `CAMPAIGN_SEED` that of their choice.
"""

import base64
import io
import json
import os
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.data.images import open_image
from cal_cli.data.llava_json import load_llava_json
from cal_cli.data.noise import NoiseConfig, inject_noise
from cal_cli.data.tables import load_conversations
from cal_cli.evaluation.benchmark import make_benchmark
from cal_cli.evaluation.results import score_answers
from cal_cli.inspection.pages import (
    AttentionSample,
    AuditedSample,
    HeatmapSample,
    ImageMaps,
    Run,
    list_kinds,
    render_attention,
    render_audit,
    render_heatmap,
)
from cal_cli.inspection.tokens import Piece, RankedWord, Token
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny

pytestmark = pytest.mark.slow
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
EXAMPLES = int(os.environ.get("CAMPAIGN_EXAMPLES", "250"))
MANY = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SCRIPT = "<script>alert(1)</script>"
TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=()), max_size=12),
    st.sampled_from(
        [
            "a disc",
            "",
            " ",
            "<image>",
            "<image>\nwhat?",
            "<image><image>",
            "\ud83d",
            "\0",
            SCRIPT,
            "{{ 7 * 7 }}",
            "</s>",
        ]
    ),
    st.sampled_from(
        ["USER: x ASSISTANT: y", "<pad>", '"><img src=x onerror=alert(1)>', "None", "${oc.env:HOME}", "é" * 3000]
    ),
)
NAMES = st.one_of(
    st.sampled_from(
        ["good.png", "link.png", "sub/good.png", "broken.png", "wide.png", "missing.png", "", ".", "sub", "a\0b"]
    ),
    st.sampled_from(
        ["../secret.png", "/etc/passwd", "sub/../../secret.png", "data:image/png;base64,AAAA", "http://x/y.png"]
    ),
    st.text(max_size=8),
    st.just("x" * 5000),
)
SCALARS = st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | TEXTS
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
PARTS = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS | st.none()}),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["image", "image_url", "video", "audio"])}, optional={"image": NAMES}
    ),
    st.fixed_dictionaries({"type": st.just("image_url"), "image_url": st.fixed_dictionaries({"url": NAMES})}),
)
TURN = st.fixed_dictionaries({"from": st.sampled_from(["human", "gpt", "system"]) | SCALARS, "value": TEXTS | SCALARS})
TURNS = st.one_of(
    st.lists(TURN, max_size=4),
    st.tuples(TEXTS, TEXTS).map(lambda pair: [{"from": "human", "value": pair[0]}, {"from": "gpt", "value": pair[1]}]),
    st.tuples(TEXTS, TEXTS, TEXTS).map(
        lambda three: [{"from": who, "value": text} for who, text in zip(("gpt", "human", "gpt"), three, strict=True)]
    ),
)
ENTRY = st.fixed_dictionaries(
    {"id": SCALARS, "conversations": TURNS}, optional={"image": NAMES | st.lists(NAMES, max_size=3) | SCALARS}
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": TEXTS | st.lists(PARTS, max_size=3)}
)
SECRET = (1, 2, 250)


def png(colour, size=(8, 8)):
    with io.BytesIO() as file:
        Image.new("RGB", size, colour).save(file, "PNG")
        return file.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images with a link, a broken one and one that is too thin; a secret one is outside."""
    folder = tmp_path_factory.mktemp("hostile") / "images"
    (folder / "sub").mkdir(parents=True)
    for name, content in {
        "good.png": png("red"),
        "sub/good.png": png("green"),
        "broken.png": png("red")[:60],
        "wide.png": png("red", (2000, 1)),
        "../secret.png": png(SECRET),
    }.items():
        (folder / name).write_bytes(content)
    (folder / "link.png").symlink_to(folder / "good.png")
    datasets.config.HF_DATASETS_CACHE = str(folder.parent / "cache")
    return folder


@pytest.fixture(scope="module")
def collate():
    return Collator(load_tiny()[1], max_length=400, leave_out=True)


@pytest.fixture(autouse=True, scope="module")
def opened():
    """The paths that are opened while `opened.append` is in the list of watchers."""
    found = []

    def watch(event, arguments):
        if event == "open" and found is not None and isinstance(arguments[0], str | bytes | Path):
            found.append(os.fsdecode(arguments[0]))

    sys.addaudithook(watch)
    return found


def say(error):
    """Check that an error is one sentence for a terminal."""
    text = str(error)
    assert text and len(text) < 2000 and "Traceback" not in text
    text.encode("utf-8", "backslashreplace")


def use(data, collate):
    """Read, collate and exchange all that was accepted."""
    for index in range(len(data)):
        try:
            sample = data[index]
            images = sample["image"] if isinstance(sample["image"], list) else [sample["image"]]
            assert all(image is None or image.getpixel((0, 0)) != SECRET for image in images)
            collate([sample])
        except InputError as error:
            say(error)
    try:
        inject_noise(data, NoiseConfig(1.0, 0))
    except InputError as error:
        say(error)


def check_opened(opened, folder):
    """Nothing outside was read as an image."""
    outside = [path for path in opened if "secret" in path or "passwd" in path]
    assert not outside, outside
    opened.clear()


@seed(SEED)
@MANY
@given(entries=st.lists(ENTRY | JSON, min_size=1, max_size=3), lines=st.booleans())
def test_entries(entries, lines, place, collate, opened):
    path = place.parent / f"entries.{'jsonl' if lines else 'json'}"
    text = "\n".join(map(json.dumps, entries)) if lines else json.dumps(entries)
    path.write_text(text)
    opened.clear()
    try:
        data = load_llava_json(str(path), str(place), max_bad_fraction=0.99)
        assert all(isinstance(entry["id"], str) for entry in data.entries)
        assert len(data) + len(data.bad) == len(entries) or lines
        for bad in data.bad:
            say(bad.problem)
        use(data, collate)
    except InputError as error:
        say(error)
    check_opened(opened, place)


def write_rows(path, rows):
    """Write rows as Parquet; return whether they fit into one schema."""
    try:
        pq.write_table(pa.Table.from_pylist(rows), path)
    except (pa.ArrowException, UnicodeEncodeError, OverflowError, TypeError):
        return False
    return True


PICTURES = st.one_of(
    st.none(),
    st.sampled_from([png("red"), png("red")[:50], b"", b"GIF89a", base64.b64encode(png("red"))]).map(
        lambda content: {"bytes": content, "path": None}
    ),
    st.just({"bytes": None, "path": None}),
    NAMES.map(lambda name: {"bytes": None, "path": name}),
)
ROW = st.one_of(
    st.fixed_dictionaries({"image": PICTURES, "conversations": TURNS}),
    st.fixed_dictionaries({"image": NAMES, "conversations": TURNS.map(lambda turns: json.dumps(turns))}),
    st.fixed_dictionaries({"images": st.lists(PICTURES, max_size=2), "messages": st.lists(MESSAGE, max_size=3)}),
    st.fixed_dictionaries({"messages": st.lists(MESSAGE, max_size=3)}),
    st.fixed_dictionaries({"image": PICTURES, "caption": TEXTS | st.none()}),
    st.fixed_dictionaries({"image": PICTURES, "json": JSON.map(json.dumps), "id": SCALARS}),
)


@seed(SEED + 1)
@MANY
@given(row=ROW, times=st.integers(1, 2))
def test_rows(row, times, place, collate, opened):
    path = place / "rows.parquet"
    if not write_rows(path, [row] * times):
        return
    datasets.disable_progress_bars()
    opened.clear()
    try:
        data = load_conversations(str(path), image_folder=str(place), max_bad_fraction=0.99)
        use(data, collate)
    except InputError as error:
        say(error)
    finally:
        path.unlink()
    check_opened(opened, place)


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "AVIF", "ICO", "PPM")


@seed(SEED + 2)
@MANY
@given(
    kind=st.sampled_from(FORMATS),
    mode=st.sampled_from(["RGB", "L", "RGBA", "P", "1", "I;16", "CMYK", "F", "LA"]),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    cut=st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=6),
)
def test_images(kind, mode, size, cut, changes):
    with io.BytesIO() as file:
        try:
            Image.new(mode, size, 1).save(file, kind)
        except (OSError, ValueError, KeyError):
            return
        content = bytearray(file.getvalue())
    for where, value in changes:
        content[int(where * len(content))] = value
    content = content[: max(1, round(cut * len(content)))] if cut < 0.9 else content
    try:
        image = open_image(io.BytesIO(bytes(content)))
        assert image.mode == "RGB" and max(image.size) <= 200 * min(image.size)
    except InputError as error:
        say(error)


METRICS = st.sampled_from(
    [
        {"_target_": "cal_cli.evaluation.metrics.Mean", "rule": rule, "name": "right"}
        for rule in ("vqa_accuracy", "anls", "relaxed_accuracy", "contained", "exact_match", "letter_alone")
    ]
    + [
        {"_target_": "cal_cli.evaluation.metrics.Mean", "rule": rule, "name": "right"}
        for rule in ("first_character", "letter_extracted")
    ]
    + [{"_target_": f"cal_cli.evaluation.metrics.{name}"} for name in ("POPE", "MME", "MMStar", "Boxes", "OCRBench")]
)
TAGS = {
    "category": "{{ kind }}",
    "l2_category": "x",
    "question_id": "{{ number }}",
    "dataset": "x",
    "question_type": "y",
}


@seed(SEED + 3)
@MANY
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "question": TEXTS | st.none(),
                "answers": st.sampled_from(
                    ["A", "yes", "3", 3, 2.5, None, [], ["a", "b"], [None], [0.1, 0.2, 0.3, 0.4]]
                )
                | JSON,
                "kind": TEXTS | st.none(),
                "id": SCALARS,
                "image": PICTURES,
            }
        ),
        min_size=1,
        max_size=3,
    ),
    metric=METRICS,
    predictions=st.lists(TEXTS, min_size=3, max_size=3),
)
def test_questions(rows, metric, predictions, place, opened):
    path = place / "questions.parquet"
    if not write_rows(path, rows):
        return
    opened.clear()
    try:
        found = make_benchmark(
            path=str(path),
            split="test",
            prompt="{{ question }}",
            answers="answers",
            metric=OmegaConf.create(metric),
            max_new_tokens=4,
            image_folder=str(place),
            id="id",
            tags=TAGS,
        )
        assert len(found.questions) == len({question.id for question in found.questions}) == len(rows)
        for question in found.questions:
            try:
                assert all(image.getpixel((0, 0)) != SECRET for image in question.images())
            except InputError as error:
                say(error)
        result = score_answers("x", found, predictions[: len(rows)], {}, place.parent / "scored")
        assert result["n"] == sum(bool(question.answers) for question in found.questions)
        (place.parent / "scored/predictions.jsonl").read_text()
    except InputError as error:
        say(error)
    finally:
        path.unlink()
    check_opened(opened, place)


class Tags(HTMLParser):
    """All tags of a page with their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, sorted(name for name, _ in attributes)))


def find_tags(page):
    tags = Tags()
    tags.feed(page)
    return tags.found


def render_tokens(first, second, identity, title):
    texts = {title: [Piece(first, None), Piece(second, Token((2.0, 0.5), (-0.5, -2.0), 2.0))]}
    words = [[RankedWord(second, None, 3, 1.5)], [RankedWord(first, "contradicted", 3, -1.5)]]
    return render_heatmap([HeatmapSample(identity, [Image.new("RGB", (4, 4))], texts, True)], title, words)


def render_audited(first, second, identity, title):
    turns = [(first, [Run(second, 0, False), Run(first, 2, True)])]
    numbers = {"rank": 1, "evidence": -1.0, "contradiction": 1.0, "p_mismatch": 0.5, "loss": 2.0, "is_noise": True}
    judged = {"place": 3, "turn": 0, "stratum": 0, "probability": 1.0, "verdict": "wrong", "listed": True}
    row = SimpleNamespace(sample_id=identity, text_repeats=2, image_texts=2, **numbers, **judged)
    design = {"rank": title, "samples": 1, "review": 1, "seed": 0}
    return render_audit([AuditedSample([Image.new("RGB", (4, 4))], turns, row)], title, [title], design)


def render_maps(first, second, identity, title):
    pictures = [ImageMaps(Image.new("RGB", (4, 4)), np.ones((1, 3, 2, 2)))]
    sample = AttentionSample(identity, [(first, None), (second, 0)], [-1, 0], [(title, pictures)])
    return render_attention([sample], list_kinds(1), title, title)


@seed(SEED + 4)
@MANY
@given(
    render=st.sampled_from([render_tokens, render_audited, render_maps]),
    texts=st.lists(TEXTS, min_size=2, max_size=2),
    name=TEXTS,
)
def test_pages(render, texts, name):
    plain, hostile = render("a", "b", "c", "d"), render(texts[0], texts[1], name, name)
    assert find_tags(hostile) == find_tags(plain)
    hostile.encode("utf-8", "backslashreplace")
