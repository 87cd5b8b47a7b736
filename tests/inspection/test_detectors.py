"""Similarity of images and texts against the library's own, neighbours by brute force, and scores of the data."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

from cal_cli.data.sample import Conversations
from cal_cli.data.tables import load_conversations
from cal_cli.inspection.detectors import (
    NEIGHBOURS,
    Embedder,
    add_similarity,
    compare_neighbours,
    join_answers,
    list_detectors,
    rank_samples,
    read_scores,
)
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module", params=["clip", "siglip"])
def encoder(request, tmp_path_factory):
    """The folder of a small dual encoder with random weights."""
    torch.manual_seed(0)
    tokenizer = load_tiny()[1].tokenizer
    tokenizer.model_max_length = 64
    text = SMALL | {"vocab_size": len(tokenizer), "max_position_embeddings": 64, "eos_token_id": tokenizer.eos_token_id}
    vision = SMALL | {"image_size": 32, "patch_size": 8}
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "clip":
        config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
        images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
        model, processor = CLIPModel(config), CLIPProcessor(images, tokenizer)
    else:
        config = SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=vision)
        images = SiglipImageProcessor(size={"height": 32, "width": 32})
        model, processor = SiglipModel(config), SiglipProcessor(images, tokenizer)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_similarity_is_the_library_s(encoder, world, tmp_path):
    places = [n for n, entry in enumerate(world.entries) if "image" in entry]
    Embedder(str(encoder), torch.device("cpu"), 3, 0).write_part(world, places, tmp_path / "part.parquet")
    table = pq.read_table(tmp_path / "part.parquet")
    assert table["index"].to_pylist() == places
    model, pixels = AutoModel.from_pretrained(encoder), AutoImageProcessor.from_pretrained(encoder, backend="pil")
    tokenizer = load_tiny()[1].tokenizer
    for place, found in zip(places, table["clip"].to_pylist(), strict=True):
        text = tokenizer(
            [join_answers(world.entries[place])],
            padding="max_length",
            max_length=64,
            truncation=True,
            return_tensors="pt",
        )
        text.pop("token_type_ids", None)
        with torch.no_grad():
            out = model(**text, **pixels(world[place]["image"], return_tensors="pt"))
        cosine = (out.image_embeds * out.text_embeds).sum() / out.image_embeds.norm() / out.text_embeds.norm()
        assert found == pytest.approx(float(cosine), abs=1e-5)
    samples = add_similarity(pd.DataFrame({"index": [*places, 10**6]}), [table])
    assert samples["clip"].isna().tolist() == [False] * len(places) + [True]


def test_another_model_is_refused(tmp_path):
    load_tiny()[0].save_pretrained(tmp_path)
    load_tiny()[1].save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"clip=.*: "):
        Embedder(str(tmp_path), torch.device("cpu"), 3, 0)


def test_neighbours_are_those_of_a_search_of_all_pairs():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(50, 8, generator=generator), dim=1) for _ in "ab")
    expected = []
    for one in range(50):
        order = sorted(
            (other for other in range(50) if other != one), key=lambda other: -float(image[one] @ image[other])
        )
        expected.append(1 - np.mean([float(text[one] @ text[other]) for other in order[:NEIGHBOURS]]))
    assert np.allclose(compare_neighbours(image, text, block=7), expected, atol=1e-6)
    assert len(compare_neighbours(image[:3], text[:3])) == 3


def make_data(scores):
    entries = [{"id": str(n), "conversations": []} | ({} if s is None else {"rating": s}) for n, s in enumerate(scores)]
    return Conversations(entries, lambda name: None)


def test_scores_of_the_data_rank_and_missing_ones_come_last():
    scores = read_scores(make_data([3, None, 1.5, 2]), "rating")
    assert np.array_equal(scores, [3, np.nan, 1.5, 2], equal_nan=True)
    assert rank_samples(pd.DataFrame({"score": scores}), "score").index.tolist() == [2, 3, 0, 1]
    assert read_scores(make_data([3, 1]), "-rating").tolist() == [-3, -1]
    assert list(list_detectors(pd.DataFrame({"score": scores, "loss": 0.0}))) == ["loss", "score"]


@pytest.mark.parametrize(("scores", "message"), [([None, None], "no sample has it"), ([1, "good"], "holds 'good'")])
def test_what_is_no_number_is_refused(scores, message):
    with pytest.raises(InputError, match=f"score_column=rating: {message}"):
        read_scores(make_data(scores), "rating")


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_ratings_and_weights_of_a_table_are_read_from_every_format(suffix, tmp_path):
    rows = [{"id": str(n), "text": "a red ring", "rating": 2.5 - n} for n in range(4)]
    if suffix == "jsonl":
        (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pd.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    given = [[[0.5, 1.0]], None, [[0.0, 0.25]], None]
    pq.write_table(pa.table({"loss_weights": given}), tmp_path / "weights.parquet")
    (tmp_path / "rows.json").write_text("[3, 0, 2]")
    path, more = str(tmp_path / f"t.{suffix}"), {"rows": str(tmp_path / "rows.json")}
    data = load_conversations(path, weights=str(tmp_path / "weights.parquet"), **more)
    assert read_scores(data, "rating").tolist() == [-0.5, 2.5, 0.5]
    assert [entry.get("loss_weights") for entry in data.entries] == [None, [[0.5, 1.0]], [[0.0, 0.25]]]
    assert [data.entries[n].get("loss_weights") for n in range(3)] == [None, [[0.5, 1.0]], [[0.0, 0.25]]]
