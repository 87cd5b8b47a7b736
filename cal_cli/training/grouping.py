"""Batches of one modality and of similar lengths, so that little of a batch is padding."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from cal_cli.data.conversations import Entry, image_names

IMAGE_WORDS = 128  # what a picture counts for beside a text's words, as in LLaVA
CHUNK = 32  # batches that are sorted among one another


def length_of(entry: Entry) -> int:
    """About how long a sample will be: the words of its turns, and `IMAGE_WORDS` for each picture."""
    words = sum(len(turn["value"].split()) for turn in entry["conversations"])
    return words + IMAGE_WORDS * len(image_names(entry))


class ModalityLengthSampler(Sampler[int]):
    """An order of samples in which batches that follow one another hold one modality and similar lengths.

    Samples are shuffled, those with a picture apart from those without; `CHUNK` batches at a time are sorted by
    length, and the batches are shuffled. Only the two last batches of a modality may be mixed with another's.

    Args:
        lengths: of each sample, in any unit.
        has_image: of each sample.
        batch_size: samples of one step on all devices.
        seed: of the order.
        epoch: tells the epoch that begins, from 0; each has another order.

    Source: `group_by_modality_length` of LLaVA's trainer, our own writing.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        has_image: Sequence[bool],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.lengths, self.has_image = lengths, has_image
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        whole: list[list[int]] = []
        rest: list[int] = []
        for shows in (True, False):
            members = [index for index, image in enumerate(self.has_image) if image == shows]
            order = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
            for start in range(0, len(order), CHUNK * self.batch_size):
                chunk = sorted(order[start : start + CHUNK * self.batch_size], key=lambda index: self.lengths[index])
                batches = [chunk[at : at + self.batch_size] for at in range(0, len(chunk), self.batch_size)]
                if len(batches[-1]) < self.batch_size:
                    rest += batches.pop()
                whole += batches
        for place in torch.randperm(len(whole), generator=generator).tolist():
            yield from whole[place]
        yield from rest
