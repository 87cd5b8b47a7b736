"""The default world as a data set and as a benchmark: images of several tasks, drawn on the fly.

The images of a task are split by a checksum of what they show, so training and test split share none, whatever the
seed, size or number of runs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from cal_cli.data.sample import CORRELATED, FAMILY, REGIONS, Conversations, Entry, LazyEntries
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import Metric, Parts, Question, Sums
from cal_cli.runtime.errors import InputError
from cal_cli.toy.families import FAMILIES
from cal_cli.toy.families.base import SPLITS, Family, Turn
from cal_cli.toy.materials import CAMERAS, photograph, unmark


def make_scenes(
    n: int,
    seed: int = 0,
    split: str = "train",
    text_only_share: float = 0.1,
    families: list[str] | None = None,
    irrelevant: float = 1.0,
    grain: float = 1.0,
    camera: str | None = None,
) -> Conversations:
    """Make the first `n` samples of a split of the world.

    Sample `i` depends only on the arguments other than `n`, and on `i`: a larger `n` does not change the first samples.
    An entry has its `family`, the places of its `correlated` words, those that can only be known by looking, and in
    captions the `regions` that these words name.

    Args:
        n: number of samples.
        seed: which stream of samples.
        split: `train` or `test`.
        text_only_share: probability of a sample without an image: a conversation about an image that is not shown.
            From these a model learns what language alone predicts, which the contrast relies on.
        families: names of `cal_cli.toy.families.FAMILIES`; None means all. Each has its own share of the samples.
        irrelevant: number of irrelevant words in a caption for each correlated one.
        grain: how faded and noisy images are, from 0 for not at all to 1.
        camera: one of `CAMERAS`, see `photograph`; None is `plain`.

    Raises InputError if a value is out of range, or a name unknown.
    """
    if n < 1:
        raise InputError(f"data.n={n}: at least 1 sample is needed")
    if split not in SPLITS:
        raise InputError(f"data.split={split}: allowed are {' and '.join(SPLITS)}")
    if not 0 <= text_only_share <= 1:
        raise InputError(f"data.text_only_share={text_only_share}: allowed is a share from 0 to 1")
    if not 0 <= irrelevant <= 20:
        raise InputError(f"data.irrelevant={irrelevant}: allowed is a number from 0 to 20")
    chosen = [FAMILIES[name] for name in choose_families(families, grain, camera, "data")]
    entries = World(n, seed, split, text_only_share, chosen, irrelevant)
    return Conversations(entries, partial(_paint, entries, grain, camera))


@dataclass(eq=False)
class World(LazyEntries):
    """The samples of `make_scenes`; each is drawn when it is first read."""

    n: int
    seed: int
    split: str
    text_only_share: float
    families: list[Family]
    irrelevant: float
    drawn: dict[int, tuple[Entry, Family, Any]] = field(default_factory=dict)  # with what the image shows, by place

    def __len__(self) -> int:
        return self.n

    def read(self, index: int) -> Entry:
        return self.draw(index)[0]

    def draw(self, index: int) -> tuple[Entry, Family, Any]:
        """Draw a sample: its entry, its task, and what its image shows."""
        if index not in self.drawn:
            identity = f"{self.split}-{self.seed}-{index:06d}"
            random_state = random.Random(identity)
            with_image = random_state.random() >= self.text_only_share
            (family,) = random_state.choices(self.families, [family.share for family in self.families])
            content = family.draw_of_split(random_state, self.split)
            turns = family.converse(content, random_state, self.irrelevant)
            conversation, correlated, regions = write_conversation(turns, with_image)
            entry: Entry = {"id": identity, "conversations": conversation, FAMILY: family.name, CORRELATED: correlated}
            if with_image:
                entry |= {"image": f"{identity}.png", **({REGIONS: regions} if regions else {})}
            self.drawn[index] = entry, family, content
        return self.drawn[index]


def choose_families(names: Sequence[str] | None, grain: float, camera: str | None, node: str) -> list[str]:
    """Return the names of tasks, all for None, if the other options of their images are right too.

    `node` is that of the config. Raises InputError if a name is unknown or given twice, there is none, the grain is not
    from 0 to 1, or the camera unknown.
    """
    if not 0 <= grain <= 1:
        raise InputError(f"{node}.grain={grain}: allowed is a number from 0 to 1")
    if camera is not None and camera not in CAMERAS:
        raise InputError(f"{node}.camera={camera}: allowed are {', '.join(CAMERAS)}")
    chosen = list(FAMILIES) if names is None else list(names)
    unknown = [name for name in chosen if name not in FAMILIES]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"{node}.families={chosen}: allowed are, once each, {', '.join(FAMILIES)}")
    return chosen


def write_conversation(
    turns: Sequence[Turn], with_image: bool
) -> tuple[list[dict[str, str]], list[list[int]], list[list[int]]]:
    """Write turns in LLaVA's form, with the image before the first question.

    Also returns turn, begin and end of each correlated word, in characters of the turn; and the same with the box of
    what it names, if that is known.
    """
    entries, correlated, regions = [], [], []
    for number, (question, marked, boxes) in enumerate(turns):
        answer, spans = unmark(marked)
        marker = "<image>\n" if with_image and number == 0 else ""
        entries += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
        marks = [[len(entries) - 1, *span] for span in spans]
        correlated += marks
        regions += [[*mark, *box] for mark, box in zip(marks, boxes, strict=bool(boxes))]
    return entries, correlated, regions


def paint(family: str, content: Any, grain: float, identity: str, camera: str | None = None) -> Image.Image:
    """Paint an image of a task; `identity` fixes what the content leaves open, such as the shade of the paper."""
    random_state = random.Random(identity)
    painted = FAMILIES[family].paint(content, random_state)
    return photograph(painted, grain, FAMILIES[family].deviation, random_state, camera)


def _paint(world: World, grain: float, camera: str | None, name: str) -> Image.Image:
    _, family, content = world.draw(int(name.removesuffix(".png").rpartition("-")[2]))
    return paint(family.name, content, grain, name, camera)


def make_benchmark(
    n: int = 512,
    seed: int = 0,
    families: list[str] | None = None,
    grain: float = 1.0,
    camera: str | None = None,
    max_new_tokens: int = 128,
    headline: list[str] | None = None,
    version: int = 2,
) -> Benchmark:
    """Ask one question about each of `n` images of each task, all of the test split.

    `conf/benchmark/scenes.yaml` documents the arguments.

    Raises InputError if `n` or `max_new_tokens` is below 1, a task or camera is unknown, or the grain is out of range.
    """
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"benchmark.{name}={value}: must be at least 1")
    chosen = choose_families(families, grain, camera, "benchmark")
    return Benchmark(
        split="test",
        questions=[ask(name, seed, number, grain, camera) for name in chosen for number in range(n)],
        metric=Scenes(),
        metric_config={"_target_": "cal_cli.toy.world.Scenes"},
        max_new_tokens=max_new_tokens,
        source={"path": "cal_cli.toy.world", "seed": seed},
    )


def ask(name: str, seed: int, number: int, grain: float, camera: str | None = None) -> Question:
    """Make question `number` of a task; images that do not allow it are passed over."""
    family, identity = FAMILIES[name], f"test-{seed}-{name}-{number:06d}"
    random_state = random.Random(f"benchmark-{identity}")
    asked = None
    while asked is None:
        content = family.draw_of_split(random_state, "test")
        asked = family.ask(content, random_state, number)
    tags = {"family": name, "kind": asked.kind}
    images = partial(_open, name, content, grain, identity, camera)
    return Question(f"{identity}-{asked.kind}", identity, f"<image>\n{asked.question}", asked.answers, images, tags)


def _open(*painted: Any) -> list[Image.Image]:
    return [paint(*painted)]


class Scenes(Metric):
    """The headline number of each task, and its finer ones."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        family = FAMILIES[question.tags["family"]]
        parts = family.rate(question, prediction)
        own = {f"{family.name}:{name}": value for name, value in ({"n": 1.0} | parts).items()}
        return {"score": parts["score"]} | own

    def compute(self, sums: Sums) -> dict[str, Any]:
        values: dict[str, Any] = {}
        more: dict[str, Any] = {}
        for family in FAMILIES.values():
            prefix = f"{family.name}:"
            own = {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}
            if own:
                computed = family.compute(own)
                values[family.metric] = computed.pop(family.metric)
                more |= computed
        return values | more
