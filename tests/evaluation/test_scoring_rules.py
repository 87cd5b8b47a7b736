"""Rules against cases worked out by hand; what is odd among them was computed with lmms-eval 0.7.3."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.evaluation.scoring_rules import (
    anls,
    contained,
    exact_match,
    extract_letter,
    find_last_letter,
    first_character,
    intersection_over_union,
    letter_alone,
    letter_among_options,
    letter_extracted,
    normalize,
    parse_box,
    relaxed_accuracy,
    vqa_accuracy,
    yes_or_no,
)


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ("", ""),
        ("The Red Ball.", "red ball"),
        ("an apple, a pear", "apple pear"),
        ("two", "2"),
        ("None", "0"),
        ("twenty-one", "twenty 1"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("5.", "5"),
        ("a" + 40 * ".", "a" + 8 * "."),  # the 32 of re.UNICODE, where sub takes a count
        ("1/2", "1 2"),
        ("1 / 2", "1 2"),
        ("50%", "50%"),
        ("dont", "don't"),
        ("couldntve", "couldntve"),
        ("couldn'tve", "couldn't've"),
        ("somebody'd", "somebodyd"),
        ("it's", "it 's"),
        ("what?\nnow!", "what now"),
        ("tab\there", "tab here"),
        ("New-York", "new york"),
        ("up- date", "up date"),
        ("Ａ", "ａ"),
    ],
)
def test_answers_are_normalised_as_vqa_does(answer, plain):
    assert normalize(answer) == plain


def test_vqa_accuracy_leaves_each_person_out_in_turn():
    """With n of 10 agreeing: n of them see n - 1 others, the rest n: (n min(1, (n-1)/3) + (10-n) min(1, n/3)) / 10."""
    for agreeing in range(11):
        answers = ["yes"] * agreeing + ["no"] * (10 - agreeing)
        expected = (agreeing * min(1, max(agreeing - 1, 0) / 3) + (10 - agreeing) * min(1, agreeing / 3)) / 10
        assert vqa_accuracy("Yes.", answers) == pytest.approx(expected)
    assert vqa_accuracy("Yes", ["yes"] * 3 + ["no"] * 7) == pytest.approx(0.9)  # the well known case
    assert vqa_accuracy("", ["yes"] * 10) == 0
    assert vqa_accuracy("four", ["4", "4 ", "the 4", "5"] * 3) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("ITC  limited", ["ITC Limited"], 1.0),
        ("ITC Limted", ["ITC Limited"], 1 - 1 / 11),
        ("abcd", ["abxy"], 0.5),  # at the threshold
        ("abc", ["axy"], 0.0),  # 1/3, below it
        ("", ["a"], 0.0),
        ("", [""], 1.0),
        ("blue", ["red", "blue"], 1.0),
        ("a" * 9 + " ", ["a" * 9], 1.0),
    ],
)
def test_anls_by_hand(prediction, answers, score):
    assert anls(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "score"),
    [
        ("14", "14", 1),
        ("14.7", "14", 1),  # 5 % off
        ("14.71", "14", 0),
        ("-14", "14", 0),
        ("0.57", "57%", 1),
        ("57%", "0.57", 1),
        ("57", "57%", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # no 5 % of nothing: the words must agree
        ("Inspired", "inspired", 1),
        ("Inspired.", "inspired", 0),
        ("", "14", 0),
        ("fourteen", "14", 0),
        ("1,000", "1000", 0),
        ("1/2", "0.5", 0),
        ("nan", "14", 0),
        ("14\n15", "14", 0),
        ("21", "20", 1.0),  # 5 % exactly
    ],
)
def test_relaxed_accuracy_by_hand(prediction, answer, score):
    assert relaxed_accuracy(prediction, [answer]) == score


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 1e-3), st.floats(-0.2, 0.2))
def test_relaxed_accuracy_is_a_band_of_5_percent(right, off):
    given_number = right * (1 + off)
    close = abs(given_number - right) / abs(right)
    if not math.isclose(close, 0.05, rel_tol=1e-6):
        assert relaxed_accuracy(repr(given_number), [repr(right)]) == float(close < 0.05)


def test_containment_by_hand():
    assert contained("The sign says Centre!", ["CENTRE"]) == 1
    assert contained("center", ["CENTRE"]) == 0
    assert contained("", ["x"]) == 0
    assert contained("two\nlines", ["two lines"]) == 1
    assert contained("ＡＢ１２　ｘ", ["ab12 x"]) == 1
    assert contained("twelve", ["12", "twelve"]) == 1
    assert contained("x^{2}+1", ["x ^ { 2 } + 1"], dataset="HME100k") == 1
    assert contained("X^{2}+1", ["x ^ { 2 } + 1"], dataset="HME100k") == 0  # case counts in formulas
    assert contained("x^{2}+1", ["x ^ { 2 } + 1"]) == 0


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("B", "B"),
        ("(B)", "B"),
        ("B.", "B"),
        ("B. a river", "B"),
        ("The answer is (B).", "B"),
        ("the answer is B", "B"),
        ("The correct answer is B: a river", "B"),
        ("Answer: B", "B"),
        ("It is B) a river, not (C)", "C"),
        ("(A) or rather (C)", "C"),
        ("The answer is B, as A is wrong.", "A"),  # an odd corner: capitals after the phrase count, the last of them
        ("Because", "B"),  # where there is no other sign, any capital
        ("a river", ""),
        ("", ""),
        ("?!", ""),
        ("b", ""),
        ("答案是B吗", "B"),
        ("I choose D because", "D"),
    ],
)
def test_letters_are_extracted_as_mmstar_s_scoring_does(prediction, letter):
    assert extract_letter(prediction, "ABCD") == letter
    assert letter_extracted(prediction, ["b"]) == float(letter == "B")


@pytest.mark.parametrize(
    ("prediction", "letter"),
    [
        ("C", "C"),
        ("C.", "C"),
        ("(C) a cow", "C"),
        ("the answer is C", "C"),
        ("A or C", "C"),  # the last that stands alone
        ("C or A", "A"),
        ("(B) (A)", "A"),  # in brackets alone the first option
        ("cow", ""),
        ("", ""),
        ("D", ""),  # no option
        ("C: cow", ""),
    ],
)
def test_letters_stand_as_mmt_s_scoring_reads_them(prediction, letter):
    assert find_last_letter(prediction, "ABC") == letter
    assert letter_among_options(prediction, ["C"], "ABC") == float(letter == "C")


def test_letters_of_scienceqa_and_seed():
    for prediction, score in (("B", 1), ("b", 1), ("B.", 1), ("B. Ohio", 1), ("b. Ohio", 0), ("(B)", 0), ("", 0)):
        assert letter_alone(prediction, ["B"]) == score
    for prediction, score in (("B", 1), ("b", 1), ("B. two", 1), ("(B)", 0), ("Because", 1), ("", 0)):
        assert first_character(prediction, ["B"]) == score


def test_yes_and_no_are_read_from_the_first_four_characters():
    for prediction, answer in (
        ("Yes", "yes"),
        ("yes, there is", "yes"),
        ("No.", "no"),
        ("Nope", "no"),
        ("y", "yes"),
        ("N", "no"),
        ("", "other"),
        ("x", "other"),
        ("There is no", "other"),
        ("I know", "other"),
        ("Eyes", "yes"),
        ("snow", "no"),
    ):
        assert yes_or_no(prediction) == answer


def test_boxes_by_hand():
    assert parse_box("It is at [0.1, 0.2,0.3, 1].") == [0.1, 0.2, 0.3, 1.0]
    assert parse_box("[1,2] then [0, 0, 1, -0.5]") == [0, 0, 1, -0.5]
    for nothing in ("", "0.1, 0.2, 0.3, 0.4", "[.1, .2, .3, .4]", "[1, 2, 3]"):
        assert parse_box(nothing) == [0] * 4
    assert intersection_over_union([0, 0, 2, 2], [1, 0, 3, 2]) == pytest.approx(1 / 3)
    assert intersection_over_union([0, 0, 1, 1], [2, 2, 3, 3]) == 0
    assert intersection_over_union([0, 0, 0, 0], [0, 0, 0, 0]) == 0


boxes = st.lists(st.floats(0, 1), min_size=4, max_size=4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]) + 0.01, max(v[1], v[3]) + 0.01]
)


@given(boxes, boxes)
def test_overlap_is_symmetric_and_1_only_of_the_same(one, other):
    overlap = intersection_over_union(one, other)
    assert overlap == pytest.approx(intersection_over_union(other, one), abs=1e-12) and 0 <= overlap <= 1 + 1e-12
    assert intersection_over_union(one, one) == pytest.approx(1)


@given(st.text(max_size=30), st.lists(st.text(max_size=20), min_size=4, max_size=12), st.sampled_from("ABCD"))
def test_rules_take_any_text_and_stay_within_0_and_1(prediction, answers, letter):
    for rule in (vqa_accuracy, anls, exact_match):
        assert 0 <= rule(prediction, answers) <= 1
    assert contained(prediction, [f"{answer}x" for answer in answers]) in (0, 1)
    assert relaxed_accuracy(prediction, answers[:1]) in (0, 1)
    for rule in (letter_alone, first_character, letter_extracted):
        assert rule(prediction, [letter]) in (0, 1)


@pytest.mark.parametrize(
    ("rule", "answers", "advice"),
    [
        (vqa_accuracy, ["a"], "at least 4 annotators, not 1: rule=exact_match"),
        (vqa_accuracy, ["a"] * 3, "at least 4 annotators, not 3"),
        (relaxed_accuracy, ["1", "2"], "one right answer, not 2: rule=exact_match and anls"),
        (letter_alone, ["a river"], "'a river' is not a letter: rule=exact_match"),
        (first_character, ["river"], "not a single character: rule=exact_match"),
        (contained, ["a", " "], "an answer is blank"),
    ],
)
def test_answers_outside_the_premise_of_a_rule_are_refused(rule, answers, advice):
    with pytest.raises(ValueError, match=advice):
        rule("a", answers)


def test_four_annotators_can_agree():
    """The mean over who is left out: with one other opinion of four, 3 times 2 of 3 and once 3 of 3."""
    assert vqa_accuracy("a", ["a"] * 4) == 1.0
    assert vqa_accuracy("a", ["a", "a", "a", "b"]) == pytest.approx((3 * 2 / 3 + 1) / 4)


def test_exact_match_forgives_case_and_outer_space_alone():
    assert exact_match(" The ring is red. ", ["the ring is red."]) == 1
    assert exact_match("the ring is red", ["the ring is red."]) == 0
    assert exact_match("b", ["a", "b"]) == 1


def test_outer_space_counts_for_nothing_where_a_letter_is_read():
    assert letter_alone("\n B. a river", ["B"]) == letter_alone(" b\n", ["B"]) == first_character("  b", ["B"]) == 1
    assert letter_among_options(" (B) \n", ["B"], "ABC") == 1 and letter_extracted(" B\n", ["B"]) == 1
