"""Read samples with their places, and leave out bad ones: for passes over data that need each sample once."""

import dataclasses

from torch.utils.data import Dataset
from transformers import BatchFeature

from cal_cli.data.collator import Collator, UnusableSamples
from cal_cli.data.sample import Conversations


class PlacedSamples(Dataset):
    """The samples of a dataset with their places; None for a bad one, which the dataset would replace by another."""

    def __init__(self, data: Conversations) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, place: int) -> tuple[int, dict | None]:
        sample = self.data[place]
        return place, None if sample.get("bad") else sample


def collate_good(collate: Collator, placed: list[tuple[int, dict | None]]) -> tuple[list[int], BatchFeature]:
    """Collate the good ones of some samples, and return their places with them.

    Raises UnusableSamples if a sample is bad and `collate` does not leave such samples out.
    """
    good = [(place, sample) for place, sample in placed if sample is not None]
    while good:
        try:
            batch = dataclasses.replace(collate, keep_ids=False, leave_out=False)([sample for _, sample in good])
            return [place for place, _ in good], batch
        except UnusableSamples as error:
            if not collate.leave_out:
                raise
            good = [one for one, wrong in zip(good, error.wrong, strict=True) if not wrong]
    return [], BatchFeature()
