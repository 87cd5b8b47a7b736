"""Metrics over questions against sums by hand, with figures that lmms-eval 0.7.3 gives for the same answers."""

import shutil

import pytest

from cal_cli.evaluation.metrics import MME, POPE, Boxes, Captions, Mean, MMStar, OCRBench, Question, Words
from cal_cli.runtime.errors import InputError
from cal_cli.statistics.bootstrap import estimate_values


def asked(answers, **tags):
    """Questions with these answers, and the tags' values in their order."""
    questions = []
    for place, answer in enumerate(answers):
        right = answer if isinstance(answer, list) else [answer]
        mine = {name: values[place] for name, values in tags.items()}
        questions.append(Question(str(place), f"p{place}", "?", right, lambda: [], mine))
    return questions


def values(metric, questions, predictions):
    parts = metric.score(questions, predictions)
    return {
        name: found["value"]
        for name, found in estimate_values(metric.compute, parts, [q.image_name for q in questions]).items()
    }


def test_a_mean_by_kind():
    metric = Mean("relaxed_accuracy", "overall", by="type", names={"human": "people"})
    questions = asked(["1", "2", "3", "4"], type=["human", "human", "other", "other"])
    assert values(metric, questions, ["1", "2", "3", " 9 "]) == {"overall": 0.75, "people": 1.0, "other": 0.5}
    scaled = Mean("letter_among_options", "accuracy", scale=100, given=["choices"])
    assert values(scaled, asked(["A", "B"], choices=["AB", "AB"]), ["A", "A"]) == {"accuracy": 50}


def test_a_rule_of_one_s_own_is_named_by_its_path():
    assert values(Mean("operator.eq", "same"), asked([["x"]]), ["x"]) == {"same": 0.0}  # "x" is not ["x"]
    with pytest.raises(InputError, match="neither a rule of"):
        Mean("vqa_acuracy", "x")


def test_ocrbench_counts_out_of_1000_and_sums_six_kinds_of_recognition():
    kinds = ["Regular Text Recognition", "Digit String Recognition", "Doc-oriented VQA"]
    kinds += ["Handwritten Mathematical Expression Recognition"]
    questions = asked([["a"]] * 4, dataset=["x"] * 4, question_type=kinds)
    assert values(OCRBench(), questions, ["a", "b", "a", "a"]) == {
        "ocrbench_accuracy": 0.003,
        "Digit String Recognition": 0,
        "Doc-oriented VQA": 1,
        "Handwritten Mathematical Expression Recognition": 1,
        "Regular Text Recognition": 1,
        "Text Recognition": 1,
    }


def test_mmstar_is_the_mean_of_its_finer_kinds():
    questions = asked(list("ABCD"), category=["m", "m", "m", "c"], l2_category=["x", "x", "y", "z"])
    # x has 1 of 2, y 1 of 1, z 0 of 1
    found = values(MMStar(), questions, ["A", "C", "(C)", "no idea"])
    assert found == pytest.approx({"average": 0.5, "m": 0.75, "c": 0.0})


def test_mme_adds_pictures_with_both_answers_right():
    kinds = ["count"] * 4 + ["OCR"] * 2 + ["code_reasoning"] * 2
    names = ["1", "1", "2", "2", "1", "1", "9", "9"]
    questions = asked(["Yes", "No"] * 4, category=kinds, question_id=names)
    # count: 3 of 4 right, 1 of 2 pictures; OCR: 1 of 2, none; code: 2 of 2, 1 of 1
    found = values(MME(), questions, ["yes", "no", "yes", "yes", "yes", "other", "Yes", "no"])
    assert found["mme_perception_score"] == pytest.approx(75 + 50 + 50 + 0)
    assert found["mme_cognition_score"] == pytest.approx(200)
    assert found["count"] == pytest.approx(125)


def test_mme_scores_pairs_whatever_their_order():
    kinds, names = ["count"] * 4, ["1", "2", "1", "2"]
    questions = asked(["Yes", "No", "No", "Yes"], category=kinds, question_id=names)
    assert values(MME(), questions, ["yes", "no", "no", "no"])["count"] == pytest.approx(75 + 50)


def test_pope_by_hand():
    """8 answers: true yes 2, false yes 1, false no 1, true no 3, and a "yes." that counts as neither."""
    right = ["yes", "yes", "yes", "yes", "no", "no", "no", "no"]
    said = ["yes", "Yes", "no", "yes.", "yes", "no", "no", "No"]
    found = values(POPE(), asked(right), said)
    assert found["pope_accuracy"] == pytest.approx(5 / 8)
    assert found["pope_precision"] == pytest.approx(2 / 3)
    assert found["pope_recall"] == pytest.approx(2 / 3)
    assert found["pope_f1_score"] == pytest.approx(2 / 3)
    assert found["pope_yes_ratio"] == 0.5
    assert found["answered_yes"] == pytest.approx(3 / 8)
    nothing = values(POPE(), asked(right), [""] * 8)
    assert nothing["pope_f1_score"] == nothing["pope_accuracy"] == nothing["answered_yes"] == 0


def test_boxes_are_right_from_an_overlap_of_a_half():
    questions = asked([["0", "0", "1", "1"]] * 3)
    found = values(Boxes(), questions, ["[0, 0, 1, 0.5]", "[0, 0, 1, 0.49]", "nothing"])
    assert found == pytest.approx({"refcoco_ACC@0.5": 1 / 3, "refcoco_IoU": (0.5 + 0.49) / 3})


needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="CIDEr's tokenizer needs Java")


@needs_java
def test_cider_is_the_library_s_over_its_own_words():
    """The figures are lmms-eval's for the same answers (COCO, `coco_CIDEr`)."""
    people = [["a red box on a table", "the box is red and small"], ["two dogs run on grass", "dogs running"]]
    metric = Captions("coco_CIDEr")
    perfect = values(metric, asked(people), ["a red box on a table", "two dogs run on grass"])
    mixed = values(metric, asked(people), ["A red box, on a table!", ""])
    assert perfect == pytest.approx({"coco_CIDEr": 5.3878852950}, abs=5e-5)
    assert mixed == pytest.approx({"coco_CIDEr": 2.6928791875}, abs=5e-5)
    assert values(metric, asked(people), ["", ""]) == {"coco_CIDEr": 0}


@needs_java
def test_captions_of_several_lines_do_not_shift_the_others():
    people = [["a red box"], ["two dogs run"], ["a cat"]]
    metric = Captions("c")
    one_line = metric.score(asked(people), ["a red box", "two dogs run", "a cat"])
    several = metric.score(asked(people), ["a red\u2028box", "two\ndogs\r\nrun\n", "a cat"])
    assert several == one_line


def test_cider_without_java_says_what_to_do(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"needs Java.*apt install"):
        Captions("c").check_requirements()


def test_lists_of_words_are_compared_as_sets_by_kind():
    questions = asked([["cat"], ["red", "Dog"], ["sun"]], kind=["name", "words", "words"])
    found = values(Words(by="kind"), questions, ["Cat.", "dog, red, red, blue.", ""])
    assert found == pytest.approx(
        {"name_exact": 1.0, "name_recall": 1.0, "name_precision": 1.0}
        | {"words_exact": 0.0, "words_recall": 2 / 3, "words_precision": 2 / 3}
    )
