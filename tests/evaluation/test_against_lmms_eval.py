"""Our prompts and scores against lmms-eval's own functions, where it is installed (`make slow` does it)."""

import copy
import random
import string

import datasets
import pytest

from cal_cli.evaluation import scoring_rules as rules
from cal_cli.statistics.bootstrap import estimate_values
from tests.evaluation.fixtures import rows_of, write
from tests.evaluation.test_benchmark import benchmark

pytestmark = pytest.mark.slow
metrics = pytest.importorskip("lmms_eval.api.metrics")

chartqa = pytest.importorskip("lmms_eval.tasks.chartqa.utils")
coco = pytest.importorskip("lmms_eval.tasks.coco_cap.utils")
docvqa = pytest.importorskip("lmms_eval.tasks.docvqa.utils")
mme = pytest.importorskip("lmms_eval.tasks.mme.utils")
mmstar = pytest.importorskip("lmms_eval.tasks.mmstar.utils")
mmt = pytest.importorskip("lmms_eval.tasks.mmt.utils")
ocrbench = pytest.importorskip("lmms_eval.tasks.ocrbench.utils")
pope = pytest.importorskip("lmms_eval.tasks.pope.utils")
regions = pytest.importorskip("lmms_eval.tasks.refcocog.utils")
boxes = pytest.importorskip("lmms_eval.tasks.refcocog.utils_rec")
scienceqa = pytest.importorskip("lmms_eval.tasks.scienceqa.utils")
seed = pytest.importorskip("lmms_eval.tasks.seedbench.utils")
textcaps = pytest.importorskip("lmms_eval.tasks.textcaps.utils")
textvqa = pytest.importorskip("lmms_eval.tasks.textvqa.utils")
letters = pytest.importorskip("lmms_eval.tasks._task_utils.mcq_extract")
vqa = pytest.importorskip("lmms_eval.tasks._task_utils.vqa_eval_metric")

ODD = """
    yes no Yes. No a the two ten none 5 5.0 5% 0.05 12,000 1/2 it's dont couldntve couldn'tve O'Clock oclock (B) B. B A
    C) D: answer Answer BECAUSE Because ＡＢＣ Ａ hello New-York #1 @home 1.5. e.g. nan inf 1e5 somebody'd what's y n
    (A) A, . ... -5 _ $5 é 答案是B I E is The the best correct option choice choose
"""
WORDS = ODD.split()


def texts(seed, number):
    """Answers such as models give, and such as they do not."""
    state = random.Random(seed)
    for _ in range(number):
        words = [state.choice(WORDS) for _ in range(state.randint(0, 5))]
        text = state.choice([" ", "", " ", ", ", "-", "\n", "\t"]).join(words)
        if state.random() < 0.3:
            text += "".join(state.choice(string.punctuation + " abC1\n") for _ in range(state.randint(0, 6)))
        if state.random() < 0.1:
            text = f"The {state.choice(['', 'correct ', 'best '])}answer is {text}"
        yield state.choice(["", "", " ", "\n", " \n"]) + text + state.choice(["", "", " ", "\n\n"])


def test_rules_are_lmms_eval_s_on_many_answers():
    state, normal = random.Random(1), vqa.EvalAIAnswerProcessor()
    pool = list(texts(0, 20000))
    for text in pool:
        people = [state.choice([text, state.choice(pool)]) for _ in range(10)]
        few = people[: state.randint(1, 3)]
        letter = state.choice("ABCD")
        assert rules.normalize(text) == normal(text)
        doc = {"answers": list(people), "question_id": 0}
        assert rules.vqa_accuracy(text, people) == pytest.approx(
            textvqa.textvqa_process_results(doc, [text])["exact_match"]
        )
        assert rules.anls(text, few) == pytest.approx(metrics.anls(few, [text])["anls"])
        assert rules.relaxed_accuracy(text, people[:1]) == chartqa.relaxed_correctness(text, people[0])
        written = [answer for answer in few if answer.strip()] or ["a"]  # ours refuses blank answers
        for dataset in ("HME100k", "IIIT5K"):
            doc = {"answer": written, "dataset": dataset, "question_type": ""}
            found = ocrbench.ocrbench_process_results(doc, [text])["ocrbench_accuracy"]["score"]
            assert rules.contained(text, written, dataset) == found
        doc = {"choices": list("wxyz"), "answer": "ABCD".index(letter)}
        assert rules.letter_alone(text, [letter]) == scienceqa.sqa_process_results(doc, [text])["exact_match"]
        assert rules.extract_letter(text, "ABCD") == letters.extract_mcq_answer(text, choices=list("ABCD"))
        ours = rules.find_last_letter(text, "ABCD")
        assert ours in ("", mmt.parse_multi_choice_response(text, list("ABCD")))
        doc = {"answer": letter, "data_type": "image", "question_id": 0}
        found = seed.seed_process_result(doc, [text])["seed_all"]
        assert rules.first_character(text, [letter]) == seed.seed_aggregation_result([found])
        assert rules.yes_or_no(text) == mme.parse_pred_ans(text)
        assert rules.parse_box(f"{text}[0.1, {text}, 1, -0.5, {letter}") == boxes.parse_float_sequence_within(
            f"{text}[0.1, {text}, 1, -0.5, {letter}"
        )


BRIEF = {"pre_prompt": "", "post_prompt": "\nAnswer the question using a single word or phrase."}


def with_end(end):
    return {"pre_prompt": "", "post_prompt": f"\n{end}"}


def mean(values):
    return sum(values) / len(values)


LETTER = "Answer with the option's letter from the given choices directly"
TASKS = {  # of lmms-eval: the prompt of a row, what an answer to it gives, and the values made of that
    "textvqa": (
        lambda row: textvqa.textvqa_doc_to_text(row, BRIEF | {"ocr": False}),
        lambda row, text: textvqa.textvqa_process_results(copy.deepcopy(row), [text]),
        {"exact_match": mean},
    ),
    "textvqa_ocr": (
        lambda row: textvqa.textvqa_doc_to_text(row, BRIEF | {"ocr": True}),
        lambda row, text: textvqa.textvqa_process_results(copy.deepcopy(row), [text]),
        {"exact_match": mean},
    ),
    "docvqa": (
        lambda row: docvqa.docvqa_doc_to_text(row, BRIEF),
        lambda row, text: metrics.anls(row["answers"], [text]),
        {"anls": mean},
    ),
    "chartqa": (
        lambda row: chartqa.chartqa_doc_to_text(row, with_end("Answer the question with a single word.")),
        lambda row, text: chartqa.chartqa_process_results(row, [text]),
        {"relaxed_overall": mean, "relaxed_human_split": mean, "relaxed_augmented_split": mean},
    ),
    "ocrbench": (
        lambda row: ocrbench.ocrbench_doc_to_text(row, {}),
        lambda row, text: ocrbench.ocrbench_process_results(row, [text]),
        {"ocrbench_accuracy": lambda found: sum(one["score"] for one in found) / 1000},
    ),
    "scienceqa": (
        lambda row: scienceqa.sqa_doc_to_text(row, with_end(f"{LETTER}.") | {"format": "default"}),
        lambda row, text: scienceqa.sqa_process_results(row, [text]),
        {"exact_match": mean},
    ),
    "mmstar": (
        lambda row: mmstar.mmstar_doc_to_text(row, with_end(LETTER)),
        lambda row, text: mmstar.mmstar_process_results(row, [text]),
        {name: mmstar.mmstar_aggregate_results for name in ("average", "math", "coarse perception")},
    ),
    "mmt": (
        lambda row: mmt.mmt_doc_to_text(
            row, with_end("Answer the question using a single character from the given options.")
        ),
        lambda row, text: mmt.mmt_process_results(row, [text]),
        {"accuracy": mmt.mmt_aggregate_results},
    ),
    "coco_caption": (
        coco.coco_doc_to_text,
        lambda row, text: coco.coco_process_result(row, [text]),
        {"coco_CIDEr": lambda found: coco.coco_cider(found, None)},
    ),
    "textcaps": (
        lambda row: textcaps.textcaps_doc_to_text(
            row, {"prompt": "Provide a one-sentence caption for the provided image."}
        ),
        lambda row, text: textcaps.textcaps_process_result(row, [text]),
        {"textcaps_CIDEr": textcaps.textcaps_cider},
    ),
    "refcocog": (
        boxes.refcoco_bbox_rec_doc_to_text,
        lambda row, text: boxes.refcoco_bbox_rec_process_result(row, [text]),
        {"refcoco_ACC@0.5": boxes.refcoco_bbox_rec_acc05, "refcoco_IoU": boxes.refcoco_bbox_rec_iou},
    ),
    "refcocog_caption": (
        regions.refcoco_doc_to_text,
        lambda row, text: regions.refcoco_process_result(row, [text]),
        {"refcoco_CIDEr": regions.refcoco_cider},
    ),
    "mme": (
        lambda row: mme.mme_doc_to_text(row, BRIEF),
        lambda row, text: mme.mme_process_results(row, [text]),
        {"mme_perception_score": mme.mme_aggregate_results, "mme_cognition_score": mme.mme_aggregate_results},
    ),
    "pope": (
        lambda row: pope.pope_doc_to_text(row, BRIEF),
        lambda row, text: pope.pope_process_results(row, [text]),
        {
            f"pope_{name}": getattr(pope, f"pope_aggregate_{name}")
            for name in ("accuracy", "precision", "recall", "f1_score", "yes_ratio")
        },
    ),
    "seedbench": (
        seed.seed_doc_to_text,
        lambda row, text: seed.seed_process_result(row, [text]),
        {"seed_image": seed.seed_aggregation_result},
    ),
}


def rows_for(name):
    """The rows that lmms-eval asks about."""
    rows = rows_of(name)
    if name == "refcocog":  # it makes one row of each expression
        data = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        rows = list(boxes.refcoco_bbox_rec_preprocess_dataset(data))
    return [row for row in rows if row.get("data_type") != "video"]


def answer(name, question, state):
    """Right as often as not."""
    if state.random() < 0.5:
        return f"[{', '.join(question.answers)}]" if name == "refcocog" else state.choice(question.answers)
    if name == "mmt":  # where no option is named, it guesses
        return state.choice(["(A)", "B.", "(A) or (B)", "A or B", "I think it is B"])
    if name == "refcocog":
        return state.choice(["[0.1, 0.1, 0.5, 0.6]", "nowhere", "[0.2,0.2,0.9,0.9] x", "[0.1, 0.1, 0.6, 0.35]"])
    if name in ("mme", "pope"):
        return state.choice(["Yes", "no", "No.", "maybe", ""])
    return state.choice(["", "A", "(B)", "a red box", "12", *question.answers[:1]])


@pytest.mark.parametrize("name", TASKS)
def test_prompts_and_values_are_lmms_eval_s(name, tmp_path, monkeypatch):
    prompt, process, values = TASKS[name]
    found, rows = benchmark(name, write(name, tmp_path / "data")), rows_for(name)
    monkeypatch.chdir(tmp_path)  # it writes submissions where it runs
    for row, question in zip(rows, found.questions, strict=True):
        theirs = prompt(row)
        assert question.question == (theirs if "<image>" in theirs else f"<image>\n{theirs}")
    for seed_number in range(2 if "CIDEr" in str(values) else 30):
        state = random.Random(seed_number)
        given = [
            state.choice(["", "", " ", "\n"]) + answer(name, question, state) + state.choice(["", "", " ", "\n"])
            for question in found.questions
        ]
        parts = found.metric.score(found.questions, given)
        ours = estimate_values(found.metric.compute, parts, [question.image_name for question in found.questions])
        each = [process(row, text) for row, text in zip(rows, given, strict=True)]
        for value, total in values.items():
            theirs = total([one[value] for one in each if value in one])
            assert round(ours[value]["value"], 4) == pytest.approx(round(theirs, 4), abs=1e-4), (value, given)
