"""Weights of tokens from an audit, for training on data whose texts are partly wrong."""

from collections.abc import Iterable

import pyarrow as pa
import torch

from cal_cli.objective.rules import MismatchPosterior, TokenScores


def weigh_tokens(parts: Iterable[pa.Table], share: float) -> dict[int, list[list[float]]]:
    """Compute the weights of the tokens of each answer, by the place of the sample: see `MismatchPosterior`."""
    rule = MismatchPosterior(rho=min(share, 0.999), estimated=False)
    weights: dict[int, list[list[float]]] = {}
    for part in parts:
        with_image, without_image, index = (
            torch.from_numpy(part[name].to_numpy().copy())
            for name in ("logprob_with_image", "logprob_without_image", "index")
        )
        values = rule(TokenScores(with_image, without_image, index)).double().numpy().round(4)
        turns = part.to_pandas()[["index", "turn"]].assign(weight=values)
        for (place, _), answer in turns.groupby(["index", "turn"], sort=False)["weight"]:
            weights.setdefault(place, []).append(answer.tolist())
    return weights
