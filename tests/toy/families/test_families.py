"""Each family: its right answers score fully and wrong ones do not; its answers follow from what is drawn."""

import dataclasses
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.toy.families import FAMILIES
from cal_cli.toy.families.captions import write_caption
from cal_cli.toy.families.questions import KINDS, NUMBERS, find_answer, write_question
from cal_cli.toy.materials import unmark
from cal_cli.toy.world import Scenes, make_benchmark

SEED = st.integers(0, 10**6)


def rate(family, answers, prediction, kind="caption"):
    question = make_benchmark(n=1, families=[family]).questions[0]
    changed = dataclasses.replace(question, answers=answers, tags={"family": family, "kind": kind})
    return FAMILIES[family].rate(changed, prediction)


@pytest.mark.parametrize("family", FAMILIES)
def test_right_answers_score_fully_and_those_of_other_pictures_do_not(family):
    asked = make_benchmark(n=100, families=[family]).questions
    metric = Scenes()
    right = [question.answers[0] for question in asked]
    if family == "references":
        right = [f"[{','.join(question.answers)}]" for question in asked]
    for texts, low, high in ((right, 1.0, 1.0), ([*right[7:], *right[:7]], 0.0, 0.6), ([""] * 100, 0.0, 0.0)):
        parts = metric.score(asked, texts)
        sums = {name: sum(part.get(name, 0.0) for part in parts) for name in set().union(*parts)}
        values = metric.compute(sums)
        assert next(iter(values)) == FAMILIES[family].metric
        assert low <= values[FAMILIES[family].metric] <= high


@pytest.mark.parametrize("family", FAMILIES)
@given(SEED)
def test_training_answers_have_the_right_answer_marked(family, seed):
    """The marked words of an answer are what the test's answer to the same question would be."""
    state = random.Random(seed)
    content = FAMILIES[family].draw(state)
    for turn in FAMILIES[family].converse(content, state, 1.0):
        text, spans = unmark(turn.answer)
        assert spans
        if family in ("reading", "documents"):
            (begin, end), values = spans[0], [getattr(one, "text", None) or one.value for one in content]
            assert text[begin:end] in values
        if family == "charts" and (named := re.search(r"(?:bar (\w)|the (\w+) bar)\?|which", turn.question)):
            answer = text[slice(*spans[0])]
            heights = [bar.height for bar in content]
            if "highest" in turn.question or "lowest" in turn.question:
                wanted = max(heights) if "highest" in turn.question else min(heights)
                assert {bar.label: bar.height for bar in content}[answer] == wanted
            elif named:
                label, colour = named[1], named[2]
                (bar,) = [bar for bar in content if bar.label == label or bar.colour == colour]
                assert answer == str(bar.height)
        if family == "references":
            colour, shape = re.search(r"the (\w+) (\w+)\.", turn.question).groups()
            (thing,) = [thing for thing in content if (thing.colour, thing.shape) == (colour, shape)]
            assert [int(number) for number in re.findall(r"\d+", text)] == list(thing.box)


@given(SEED)
def test_questions_about_scenes_are_answered_from_the_scene(seed):
    state = random.Random(seed)
    scene = FAMILIES["questions"].draw(state)
    for kind in KINDS:
        found = write_question(scene, kind, state)
        if found is None:
            continue
        question, _, answer = found
        words = question.rstrip("?").split()
        if kind == "count":
            number = sum(words[2] in (thing.colour, thing.shape) for thing in scene)
            assert NUMBERS[number] == answer
        elif kind == "comparison":
            one, other = (
                next(thing for thing in scene if (thing.colour, thing.shape) == tuple(pair))
                for pair in (words[2:4], words[-2:])
            )
            assert answer == ("yes" if one.box[2] - one.box[0] > other.box[2] - other.box[0] else "no")
        elif kind == "place":
            places = [thing.place for thing in scene if (thing.colour, thing.shape) == tuple(words[-2:])]
            assert places == [answer]


def test_each_number_is_asked_for_and_yes_is_as_frequent_as_no():
    asked = make_benchmark(n=1500, families=["questions"]).questions
    of_kind = {kind: [q.answers[0] for q in asked if q.tags["kind"] == kind] for kind in KINDS}
    assert {len(answers) for answers in of_kind.values()} == {300}
    assert {"zero", "one", "two", "three"} <= set(of_kind["count"])
    assert max(map(of_kind["count"].count, NUMBERS)) < 150  # no constant answer is right half of the time
    assert 120 < of_kind["comparison"].count("yes") < 180


@pytest.mark.parametrize(
    ("kind", "right", "said", "score"),
    [
        ("colour", "red", "I think it is crimson.", 1),
        ("colour", "red", "red or blue", 0),
        ("shape", "disc", "the red one is a dot.", 1),
        ("place", "top far left", "it is at the top far left.", 1),
        ("place", "top far left", "it is at the top left.", 0),
        ("count", "two", "there are two.", 1),
        ("count", "two", "there are two or three.", 0),
        ("comparison", "no", "no, i think.", 1),
        ("comparison", "no", "yes and no", 0),
        ("count", "two", "", 0),
    ],
)
def test_answers_count_in_any_wording_but_no_hedge(kind, right, said, score):
    assert rate("questions", [right], said, kind)["score"] == score


def test_captions_are_scored_by_things_and_as_a_whole():
    truth = ["a red ring at the top left. a blue disc at the lower right"]
    said = "at the top left there is a red hoop. a blue disc at the bottom right. a green block"
    parts = rate("captions", truth, said)
    assert parts == {"score": 0.0, "right": 1.0, "named": 3.0, "shown": 2.0, "mentions": 3.0, "once": 0.0}
    values = FAMILIES["captions"].compute({"n": 1.0, **parts})
    assert values["object_precision"] == pytest.approx(1 / 3) and values["object_recall"] == pytest.approx(1 / 2)
    assert values["object_f1"] == pytest.approx(2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2))
    assert rate("captions", truth, "a blue dot at the lower right, a red ring at the top left")["score"] == 1


@given(SEED)
def test_a_thing_named_again_is_no_error_and_is_counted_apart(seed):
    state = random.Random(seed)
    text, _ = unmark(write_caption(FAMILIES["captions"].draw(state), state, 0.0)[0])
    once, twice = rate("captions", [text], text), rate("captions", [text], f"{text} {text}")
    assert twice == once | {"mentions": 2 * once["mentions"], "once": 0.0} and once["score"] == once["once"] == 1
    values = FAMILIES["captions"].compute({"n": 1.0, **twice})
    assert values["object_precision"] == values["object_recall"] == 1 and values["object_repetition"] == 1 / 2
    assert values["scene_accuracy"] == 1 and values["scene_once_accuracy"] == 0


def test_find_answer_ignores_other_words():
    assert find_answer("None of the zero things", "count") == ["zero"]
