"""A few rows of each benchmark's data set in its real schema, laid out in folders as on the hub."""

import io
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
from PIL import Image

NAMES = [
    "textvqa",
    "textvqa_ocr",
    "docvqa",
    "chartqa",
    "ocrbench",
    "scienceqa",
    "mmstar",
    "mmt",
    "coco_caption",
    "textcaps",
    "refcocog",
    "refcocog_test",
    "refcocog_caption",
    "refcocog_caption_test",
    "mme",
    "pope",
    "seedbench",
]


def picture(seed):
    """A picture that is like no other, as the bytes of a PNG."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(values).resize((80, 60), Image.Resampling.NEAREST).save(file, "PNG")
        return {"bytes": file.getvalue(), "path": None}


def rows_of(name):
    """Rows of the data set that a benchmark reads."""
    if name.startswith("textvqa"):
        people = [["red"] * 8 + ["a red", "blue"], ["nokia"] * 10, ["no", "no", "yes", "no"] + ["no"] * 6, ["2"] * 10]
        asked = ["what colour is it?", "WHAT brand is it?", "is it Open?", "how many are there?"]
        ocr = [["RED", "ale"], ["NOKIA"], [], ["2", "x"]]
        return [
            {"image_id": f"i{n // 2}", "question_id": 34600 + n, "question": asked[n], "answers": people[n]}
            | {"ocr_tokens": ocr[n], "image": picture(n // 2), "image_width": 80, "image_height": 60}
            for n in range(4)
        ]
    if name == "docvqa":
        answers = [["ITC Limited", "itc limited"], ["3 March 1971"], ["$12.50"]]
        return [
            {"questionId": str(49150 + n), "question": f"What is field {n}?", "question_types": ["form"]}
            | {"image": picture(10 + n // 2), "docId": n // 2, "answers": answers[n], "data_split": "val"}
            for n in range(3)
        ]
    if name == "chartqa":
        answers = ["14", "Inspired", "0.57", "2.5%"]
        return [
            {"type": "human_test" if n < 2 else "augmented_test", "question": f"What is bar {n}?", "answer": answers[n]}
            | {"image": picture(20 + n)}
            for n in range(4)
        ]
    if name == "ocrbench":
        kinds = ["Regular Text Recognition", "Doc-oriented VQA", "Handwritten Mathematical Expression Recognition"]
        sets, answers = ["IIIT5K", "docVQA", "HME100k"], [["CENTRE"], ["12", "twelve"], ["x ^ { 2 } + 1"]]
        return [
            {"dataset": sets[n], "question": f"what is written, {n}? ", "question_type": kinds[n]}
            | {"answer": answers[n], "image": picture(30 + n)}
            for n in range(3)
        ]
    if name == "scienceqa":
        hints = ["", "Look at the map.", ""]
        return [
            {
                "image": picture(40 + n),
                "question": f"Which is farthest, {n}?",
                "choices": ["Maine", "Ohio", "Utah"][: n + 1],
            }
            | {"answer": n, "hint": hints[n], "task": "closed choice", "grade": "grade4", "subject": "social science"}
            for n in range(3)
        ]
    if name == "mmstar":
        kinds = [("math", "geometry"), ("math", "statistical reasoning"), ("coarse perception", "image emotion")]
        return [
            {"index": n, "question": f"Which one, {n}?\nOptions: A: one, B: two, C: three, D: four", "answer": "BAD"[n]}
            | {
                "image": picture(50 + n),
                "category": kinds[n][0],
                "l2_category": kinds[n][1],
                "meta_info": {"source": "x"},
            }
            for n in range(3)
        ]
    if name == "mmt":
        return [
            {
                "index": n,
                "question": f"What is shown, {n}? ",
                "A": "cat ",
                "B": "dog",
                "C": None if n else "cow",
                "D": None,
            }
            | {letter: None for letter in "EFGHI"}
            | {
                "answer": "CBA"[n],
                "image": picture(60 + n),
                "category": "c",
                "l2-category": ["ocr", "ocr", "counting"][n],
            }
            | {"split": "VAL"}
            for n in range(3)
        ]
    if name == "coco_caption":
        told = [["a red box on a table", "the box is red and small"], ["two dogs run on grass", "dogs running"]]
        return [
            {
                "question_id": f"000000{n:06d}.jpg",
                "image": picture(70 + n),
                "question": "Please carefully observe the image",
            }
            | {"answer": told[n], "id": n, "license": 3, "file_name": f"000000{n:06d}.jpg", "coco_url": "http://x"}
            for n in range(2)
        ]
    if name == "textcaps":
        told = [["a bottle that says ale", "a bottle of ale"], ["a sign that reads stop", "a red stop sign"]]
        return [
            {"question_id": str(n), "question": "Please carefully observe the image", "image": picture(80 + n)}
            | {"image_id": f"img{n}", "image_classes": ["x"], "set_name": "val", "caption_str": told[n]}
            for n in range(2)
        ]
    if name.startswith("refcocog"):
        boxes, told = (
            [[8.0, 6.0, 40.0, 30.0], [20.0, 15.0, 60.0, 45.0]],
            [["the man in blue", "left man"], ["a small dog"]],
        )
        start = 90 if "test" in name else 94
        return [
            {
                "question_id": str(start + n),
                "image": picture(start + n),
                "question": "Please carefully observe the area",
            }
            | {
                "answer": told[n],
                "segmentation": [1.0, 2.0, 3.0, 4.0],
                "bbox": boxes[n],
                "iscrowd": 0,
                "file_name": "x",
            }
            for n in range(2)
        ]
    if name == "mme":
        kinds = ["existence", "existence", "OCR", "OCR", "code_reasoning", "code_reasoning"]
        return [
            {"question_id": f"{kinds[n]}/{n // 2}.png", "image": picture(100 + n // 2), "category": kinds[n]}
            | {"question": f"Is there thing {n}? Please answer yes or no.", "answer": "No" if n % 2 else "Yes"}
            for n in range(6)
        ]
    if name == "pope":
        return [
            {"id": str(n), "question_id": str(n + 1), "question": f"Is there a thing {n} in the image?"}
            | {"answer": "no" if n % 2 else "yes", "image_source": f"COCO_{n // 2}", "image": picture(110 + n // 2)}
            | {"category": "adversarial"}
            for n in range(4)
        ]
    assert name == "seedbench"
    return [
        {"answer": "ABC"[n], "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
        | {"data_id": f"d{n}", "data_type": "video" if n == 2 else "image", "question": f"How many, {n}?"}
        | {"question_id": str(101 + n), "question_type_id": 1, "image": [picture(120 + n)] * (2 if n == 2 else 1)}
        for n in range(3)
    ]


SPLITS = {
    "chartqa": "test",
    "ocrbench": "test",
    "scienceqa": "test",
    "mme": "test",
    "pope": "test",
    "seedbench": "test",
}
SPLITS |= {"textvqa": "validation", "textvqa_ocr": "validation", "docvqa": "validation"}
SPLITS |= {"refcocog_test": "test", "refcocog_caption_test": "test"}


def write(name, folder):
    """The rows as the hub has them: a Parquet file of the split, with images as bytes, beside one of another split."""
    rows = rows_of(name)
    data = datasets.Dataset.from_list(rows)
    image = datasets.List(datasets.Image()) if isinstance(rows[0]["image"], list) else datasets.Image()
    inside = {"docvqa": "DocVQA", "scienceqa": "ScienceQA-IMG"}.get(name, "data")
    (folder / inside).mkdir(parents=True)
    data = data.cast_column("image", image)
    data.to_parquet(folder / inside / f"{SPLITS.get(name, 'val')}-00000-of-00001.parquet")
    data.select([0]).to_parquet(folder / inside / "other-00000-of-00001.parquet")
    return folder


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(name, hub_id, folder):
    """The rows in the cache that `datasets` keeps of what it has fetched from the hub, as if it had fetched them."""
    split = SPLITS.get(name, "val")
    files = {split: [str(path) for path in write(name, folder / "fetched").rglob(f"{split}-*.parquet")]}
    made = datasets.load_dataset("parquet", data_files=files, cache_dir=str(folder / "made"))[split]
    known = hub_id.partition("/")[2].lower()
    place = folder / "cache" / hub_id.lower().replace("/", "___") / "default/0.0.0" / COMMIT
    place.mkdir(parents=True)
    for path in Path(made.cache_files[0]["filename"]).parent.iterdir():
        shutil.copy(path, place / path.name.replace("parquet-", f"{known}-"))
    told = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps(told | {"dataset_name": known}))
    return folder / "cache"
