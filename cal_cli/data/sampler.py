"""Group batches by modality and length, so that little of a batch is padding."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from cal_cli.data.sample import Entry, get_image_names

IMAGE_WORDS = 128  # length of an image in words, as in LLaVA
CHUNK = 32  # batches that are sorted together


def estimate_length(entry: Entry) -> int:
    """Estimate the length of a sample: the words of its turns, and `IMAGE_WORDS` for each image."""
    words = sum(len(turn["value"].split()) for turn in entry["conversations"])
    return words + IMAGE_WORDS * len(get_image_names(entry))


class ModalityLengthSampler(Sampler[int]):
    """An order of samples in which the samples of a batch share one modality and have similar lengths.

    Samples are shuffled, those with an image apart from those without; `CHUNK` batches at a time are sorted by length,
    and the batches are shuffled. Only the last batch of each modality may be mixed with another.

    `batch_size` is the number of samples of one step on all devices; `epoch` returns the number of the epoch that
    begins, from 0, and each has another order. Lengths may be in any unit.

    Source: `group_by_modality_length` of LLaVA's trainer, written anew.
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
        full: list[list[int]] = []
        rest: list[int] = []
        for modality in (True, False):
            members = [index for index, image in enumerate(self.has_image) if image == modality]
            order = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
            for start in range(0, len(order), CHUNK * self.batch_size):
                chunk = sorted(order[start : start + CHUNK * self.batch_size], key=lambda index: self.lengths[index])
                batches = [chunk[at : at + self.batch_size] for at in range(0, len(chunk), self.batch_size)]
                if len(batches[-1]) < self.batch_size:
                    rest += batches.pop()
                full += batches
        for place in torch.randperm(len(full), generator=generator).tolist():
            yield from full[place]
        yield from rest
