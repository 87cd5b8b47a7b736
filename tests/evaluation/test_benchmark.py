"""Benchmarks' questions from data in their real schemas; the prompts are those of lmms-eval 0.7.3, word for word."""

import json
import shutil

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from PIL import Image

from cal_cli.commands.hydra_app import CONF
from cal_cli.data.formats import find_split_files
from cal_cli.evaluation.benchmark import place_images
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from tests.evaluation.fixtures import NAMES, rows_of, write

BRIEF = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly"
BOX = (
    "Bounding box coordinates are specified in the format (top-left x, top-left y, bottom-right x, bottom-right y). "
    "All values are floating point numbers bounded between 0 and 1. Please provide the bounding box coordinate of the "
    "region this sentence describes: "
)
CAPTION = "<image>\nProvide a one-sentence caption for the provided image."
REGION = "<image>\nProvide a short description for this region."
PROMPTS = {
    "textvqa": [f"<image>\nWhat colour is it?\n{BRIEF}", f"<image>\nWhat brand is it?\n{BRIEF}"],
    "textvqa_ocr": [f"<image>\nWhat colour is it?\nReference OCR token: RED, ale\n{BRIEF}"],
    "docvqa": [f"<image>\nWhat is field 0?\n{BRIEF}"],
    "chartqa": ["<image>\nWhat is bar 0?\nAnswer the question with a single word."],
    "ocrbench": ["<image>\nwhat is written, 0?"],
    "scienceqa": [
        f"<image>\nWhich is farthest, 0?\nA. Maine\n{LETTER}.",
        f"<image>\nContext: Look at the map.\nWhich is farthest, 1?\nA. Maine\nB. Ohio\n{LETTER}.",
    ],
    "mmstar": [f"<image>\nWhich one, 0?\nOptions: A: one, B: two, C: three, D: four\n{LETTER}"],
    "mmt": [
        "Question: <image>\nWhat is shown, 0?\nA: cat\nB: dog\nC: cow\n"
        "Answer the question using a single character from the given options."
    ],
    "coco_caption": [CAPTION],
    "textcaps": [CAPTION],
    "refcocog": [f"<image>\n{BOX}the man in blue", f"<image>\n{BOX}left man", f"<image>\n{BOX}a small dog"],
    "refcocog_test": [f"<image>\n{BOX}the man in blue"],
    "refcocog_caption": [REGION],
    "refcocog_caption_test": [REGION],
    "mme": [f"<image>\nIs there thing 0?\n{BRIEF}"],
    "pope": [f"<image>\nIs there a thing 0 in the image?\n{BRIEF}"],
    "seedbench": [f"<image>\nHow many, 0?\nA. One\nB. Two\nC. Three\nD. Four\n{LETTER}."],
}


def benchmark(name, folder, *words):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("eval", overrides=[f"benchmark={name}", f"benchmark.path={folder}", *words])
    return build(OmegaConf.create({"benchmark": config.benchmark}), "benchmark")


@pytest.mark.parametrize("name", NAMES)
def test_the_prompts_and_answers_are_those_of_the_field(name, tmp_path):
    found = benchmark(name, write(name, tmp_path / "data"))
    assert [question.question for question in found.questions][: len(PROMPTS[name])] == PROMPTS[name]
    assert len({question.id for question in found.questions}) == len(found.questions)
    for question in found.questions:
        assert [image.size for image in question.images()] == [(80, 60)]
        assert question.answers and all(isinstance(answer, str) for answer in question.answers)
    assert len(found.source["sha256"]) == 64


def test_only_the_file_of_the_split_is_read(tmp_path):
    found = benchmark("textvqa", write("textvqa", tmp_path / "data"))
    assert [question.id for question in found.questions] == ["34600", "34601", "34602", "34603"]


@pytest.mark.parametrize(
    ("files", "split", "taken"),
    [
        (["val.json", "test.json", "train.json"], "validation", ["val.json"]),
        (["val.json", "validation.json"], "validation", ["validation.json"]),
        (["dev.json"], "val", ["dev.json"]),
        (["train.json"], "test", []),
        (["mine.json"], "test", ["mine.json"]),
        (["mine.json", "train.json"], "test", ["mine.json"]),
        (["latest.json", "data_test.json"], "test", ["data_test.json"]),
        (["popular-00000-of-00001.json"], "test", []),
        (["a/test.json", "b/test.json"], "test", ["a/test.json"]),
        (["test/one.json", "test/two.json", "train/one.json"], "test", ["test/one.json", "test/two.json"]),
    ],
)
def test_of_a_folder_s_files_those_of_the_split_are_read(tmp_path, files, split, taken):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("[]")
    found = find_split_files(str(tmp_path), "a", split)
    assert [str(path.relative_to(tmp_path)) for path in found] == taken
    assert find_split_files(str(tmp_path / files[0]), None, split) == [tmp_path / files[0]]


def test_questions_about_one_picture_are_known_by_its_contents(tmp_path):
    pictures = [question.image_name for question in benchmark("mme", write("mme", tmp_path / "d")).questions]
    assert pictures[0::2] == pictures[1::2] and len(set(pictures)) == 3


def test_boxes_are_shares_of_the_picture_and_regions_are_outlined(tmp_path):
    found = benchmark("refcocog", write("refcocog", tmp_path / "a"))
    assert [float(value) for value in found.questions[0].answers] == pytest.approx([0.1, 0.1, 0.6, 0.6])
    outlined = benchmark("refcocog_caption", write("refcocog_caption", tmp_path / "b")).questions[0]
    (image,), (plain,) = outlined.images(), found.questions[0].images()
    assert image.getpixel((8, 20)) == image.getpixel((48, 20)) == image.getpixel((20, 36)) == (255, 0, 0)
    assert image.getpixel((60, 50)) == plain.getpixel((60, 50))


def test_seed_asks_about_pictures_alone_and_scienceqa_where_there_is_one(tmp_path):
    assert [q.id for q in benchmark("seedbench", write("seedbench", tmp_path / "a")).questions] == ["101", "102"]
    assert len(rows_of("seedbench")) == 3


def test_json_with_images_beside_it_works_as_well(tmp_path):
    rows = [{"question": "What is field?", "answers": ["x"], "questionId": n, "image": f"{n}.png"} for n in range(2)]
    for number, row in enumerate(rows):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / row["image"])
    (tmp_path / "validation.json").write_text(json.dumps(rows))
    found = benchmark("docvqa", tmp_path)
    assert [q.question for q in found.questions] == [f"<image>\nWhat is field?\n{BRIEF}"] * 2
    assert [q.images()[0].getpixel((0, 0)) for q in found.questions] == [(0, 0, 0), (1, 0, 0)]


def test_a_benchmark_of_one_s_own_is_a_yaml_alone(tmp_path, monkeypatch):
    write("pope", tmp_path / "data")
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/mine.yaml").write_text(
        f"""
defaults: [dataset]
path: {tmp_path / "data"}
split: test
prompt: "{{{{ question }}}} ({{{{ number }}}})"
answers: "[answer, answer.upper()]"
metric: {{_target_: cal_cli.evaluation.metrics.Mean, rule: exact_match, name: right}}
max_new_tokens: 4
"""
    )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        words = ["benchmark=mine", f"hydra.searchpath=[file://{tmp_path}]"]
        config = compose("eval", overrides=words)
    found = build(OmegaConf.create({"benchmark": config.benchmark}), "benchmark")
    assert found.questions[2].question == "<image>\nIs there a thing 2 in the image? (2)"
    assert found.questions[2].answers == ["yes", "YES"]


def test_the_prompt_can_be_another(tmp_path):
    found = benchmark("pope", write("pope", tmp_path / "d"), "benchmark.prompt='{{ question }} <image> Short:'")
    assert found.questions[0].question == "Is there a thing 0 in the image? <image> Short:"


def test_ids_that_repeat_are_told_apart(tmp_path):
    found = benchmark("pope", write("pope", tmp_path / "d"), "benchmark.id=answer")
    assert [question.id for question in found.questions] == ["yes", "no", "yes-2", "no-3"]


def test_there_are_as_many_places_as_pictures():
    assert place_images("what?", 0) == "what?"
    assert place_images("what?", 2) == "<image> <image>\nwhat?"
    assert place_images("in <image> what?", 1) == "in <image> what?"
    assert place_images("in <image> what?", 2) == "<image>\nin <image> what?"
    assert place_images("in <image> <image> what?", 1) == "in <image>  what?"
    assert place_images("<image>what?", 0) == "what?"


def test_a_row_s_own_words_for_an_image_are_no_picture(tmp_path):
    found = benchmark("pope", write("pope", tmp_path / "d"), "benchmark.prompt='<image> as in <image>{{ question }}'")
    assert found.questions[0].question.count("<image>") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["benchmark.answers=right"], r"benchmark\.answers=right: row 0: .*'right' is undefined"),
        (["benchmark.answers='a b'"], "is not a Jinja expression"),
        (["benchmark.prompt='{{ nothing }}'"], "row 0 does not fit prompt and tags"),
        (["benchmark.prompt='{{ question'"], "are not Jinja templates"),
        (["benchmark.image=picture"], "there is no such column; there are .*question"),
        (["benchmark.where=false"], "the split test has no question"),
        (["benchmark.split=train"], "contains no .* file of the split train"),
        (["benchmark.max_new_tokens=0"], "must be at least 1"),
        (
            ["benchmark.metric._target_=cal_cli.evaluation.metrics.Mean"],
            "benchmark.metric: missing a required argument: 'rule'",
        ),
        (["+benchmark.metric.by=kind"], "by is not an option"),
    ],
)
def test_what_does_not_fit_is_told(words, said, tmp_path):
    folder = write("pope", tmp_path / "d")
    with pytest.raises(InputError, match=said):
        benchmark("pope", folder, *words)


@pytest.mark.parametrize("image", [7, [1, 2], {"x": 1}])
def test_a_column_of_other_things_than_images_is_refused(image, tmp_path):
    rows = [{"question": "What is field?", "answers": ["x"], "questionId": 0, "image": image}]
    (tmp_path / "validation.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"benchmark.image: row 0 has .*: give bytes, or names of files"):
        benchmark("docvqa", tmp_path)


def test_questions_that_all_lack_their_image_are_asked_only_on_request(tmp_path):
    rows = [{"question": "What is field?", "answers": ["x"], "questionId": number} for number in range(2)]
    (tmp_path / "validation.json").write_text(json.dumps([{**row, "image": None} for row in rows]))
    with pytest.raises(
        InputError, match=r"benchmark.image=image: no question has an image there; benchmark.image=null"
    ):
        benchmark("docvqa", tmp_path)
    assert len(benchmark("docvqa", tmp_path, "benchmark.image=null").questions) == 2


def test_without_data_the_command_that_fetches_them_is_told(tmp_path):
    with pytest.raises(InputError, match="hf download --repo-type dataset lmms-lab-encoder/POPE --local-dir POPE"):
        benchmark("pope", "lmms-lab-encoder/POPE")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"contains no .parquet.* file"):
        benchmark("pope", tmp_path / "empty")
    folder = write("pope", tmp_path / "cut")
    for path in folder.rglob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        benchmark("pope", folder)
    shutil.rmtree(folder)


def test_the_paper_s_eleven_are_all_there():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        names = compose("eval", overrides=["benchmark=paper"]).benchmark.benchmarks
        assert len(names) == 11 and set(names) <= set(NAMES)
        for name in NAMES:
            node = compose("eval", overrides=[f"benchmark={name}"]).benchmark
            assert node.headline and node.version == 1 and "lmms-eval 0.7.3" in node.source
