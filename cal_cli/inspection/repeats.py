"""Texts that several samples share, and images that several samples show, with which texts."""

import hashlib
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from cal_cli.data.sample import Conversations
from cal_cli.inspection.detectors import join_answers

SHORTEST = 16  # characters of a text that counts: short answers, such as "yes", are meant to repeat
LISTED = 20  # the most frequent ones
EXAMPLES = 5  # samples of each


def normalize_text(text: str) -> str:
    """Return a text without case, punctuation and spacing, in the compatibility form of Unicode.

    Example:
        >>> normalize_text("A  red circle. ")
        'a red circle'
    """
    return re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def find_repeats(data: Conversations, samples: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Find the texts and images that samples of an audit share.

    Args:
        data: that were audited.
        samples: `AuditSummary.samples`, in the order of the data.

    Returns:
        The samples with `text_repeats`, the number of samples with the same normalised answers, this one included (1
        for short ones); `image_repeats`, the same for the image; and `image_texts`, the number of different texts
        among these. And a summary: of `texts` the number of samples that share theirs (`samples`), that share it only
        after normalisation (`nearly`), and the most frequent (`most`); of `images` the same, `texts` for those with
        several different ones.
    """
    audited = set(samples["index"].tolist())
    texts = (join_answers(entry) for place, entry in enumerate(data.entries) if place in audited)
    hashes = np.array([(hash_text(text), hash_text(normalize_text(text))) for text in texts], dtype=np.int64)
    image = pd.factorize(samples["image"])[0]
    table = pd.DataFrame({"exact": hashes[:, 0], "normal": hashes[:, 1], "image": image}, index=samples.index)
    counted = table["normal"] != 0
    table["text_repeats"] = table.groupby("normal")["normal"].transform("size").where(counted, 1)
    table["same"] = table.groupby("exact")["exact"].transform("size").where(counted, 1)
    table["image_repeats"] = table.groupby("image")["image"].transform("size")
    table["image_texts"] = table.groupby("image")["normal"].transform("nunique")
    places = samples["index"].to_numpy()
    summary = {
        "texts": {
            "samples": int((table["text_repeats"] > 1).sum()),
            "nearly": int(((table["text_repeats"] > 1) & (table["same"] == 1)).sum()),
            "most": describe_most(data, places, table["normal"].where(table["text_repeats"] > 1)),
        },
        "images": {
            "samples": int((table["image_repeats"] > 1).sum()),
            "with_several_texts": int((table["image_texts"] > 1).sum()),
            "most": describe_most(data, places, table["image"].where(table["image_texts"] > 1)),
        },
    }
    return samples.assign(**table[["text_repeats", "image_repeats", "image_texts"]]), summary


def describe_repeats(summary: Mapping[str, Any]) -> list[str]:
    """Describe the summary of `find_repeats` in sentences; none if nothing repeats."""
    texts, images, facts = summary["texts"], summary["images"], []
    if texts["samples"]:
        facts.append(
            f"{texts['samples']:,} samples share their text with others, "
            f"the most frequent {texts['most'][0]['samples']:,} times: audit.json lists them."
        )
    if images["with_several_texts"]:
        facts.append(f"{images['with_several_texts']:,} samples share their image with others that have another text.")
    return facts


def hash_text(text: str) -> int:
    """Return a number for a text, the same for equal ones, so that texts take 8 bytes; 0 for short ones."""
    if len(text) < SHORTEST:
        return 0
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def describe_most(data: Conversations, places: np.ndarray, group: pd.Series) -> list[dict[str, Any]]:
    """Describe the largest groups of samples: their number, and the id and text of the first ones.

    `group` is the group of each sample, missing for those of none.
    """
    groups = []
    for name, count in group.value_counts().head(LISTED).items():
        entries = [data.entries[int(place)] for place in places[(group == name).to_numpy()][:EXAMPLES]]
        examples = [{"id": entry["id"], "text": join_answers(entry)} for entry in entries]
        groups.append({"samples": int(count), "examples": examples})
    return groups
