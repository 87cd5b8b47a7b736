"""Where the sentences of an answer begin, for rules that judge each by itself."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.forward import Positions

ENDS = (".", "!", "?", "。", "！", "？", "\n")
CLOSING = "\"')]}”’»"  # may follow the end of a sentence within a token


def find_sentence_ends(tokenizer: Any) -> Tensor:
    """Return the ids of tokens after which a sentence begins, int64 [any]: those that end one, and special tokens.

    A decimal point that is a token of its own ends a sentence too.
    """
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))])
    special = set(tokenizer.all_special_ids)
    ids = [n for n, text in enumerate(texts) if text.rstrip(CLOSING + " ").endswith(ENDS) or n in special]
    return torch.tensor(ids, dtype=torch.long)


def split_sentences(positions: Positions, ends: Tensor) -> Tensor:
    """Return the sentence that each supervised position's label belongs to, int64 [positions].

    Ends that follow each other, such as a full stop and the end token of the answer, belong to the same sentence.
    """
    ended = torch.isin(positions.labels, ends.to(positions.labels.device))
    begins = (positions.turns.diff() != 0) | (ended[:-1] & ~ended[1:])
    return F.pad(begins.cumsum(0), (1, 0))
