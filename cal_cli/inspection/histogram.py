"""Figure 4 of the paper: the distribution of delta over tokens, with the share at or below 5 marked."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from cal_cli.runtime.figure import encode_figure


def draw_histogram(delta: np.ndarray, is_noise: np.ndarray | None, title: str, bound: float = 5.0) -> bytes:
    """Draw the distribution of delta (float [tokens]) as a PNG.

    `is_noise` (bool [tokens]) marks tokens that do not describe their picture, which are drawn separately; None means
    unknown. The share of tokens at or below `bound`, by default the paper's upper clamp bound, is shown.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    low, high = np.floor(delta.min()), np.ceil(delta.max())
    bins: Any = np.linspace(low, max(high, low + 1), 61)
    if is_noise is None:
        axes.hist(delta, bins, color="tab:blue")
    else:
        axes.hist(delta[~is_noise], bins, color="tab:blue", alpha=0.6, label=f"of the picture ({(~is_noise).sum():,})")
        axes.hist(delta[is_noise], bins, color="tab:red", alpha=0.6, label=f"not of the picture ({is_noise.sum():,})")
    share = float((delta <= bound).mean())
    axes.axvline(bound, color="black", linestyle="--", label=f"{share:.1%} at or below {bound:g}")
    axes.set(xlabel="delta (with image minus without)", ylabel="tokens", yscale="log", title=title)
    axes.legend()
    return encode_figure(figure)


def compare_histograms(deltas: Mapping[str, np.ndarray], bound: float = 5.0) -> bytes:
    """Draw the distributions of delta (float [tokens]) of several models as lines, as a PNG; see `draw_histogram`."""
    figure = Figure(figsize=(7, 4 + 0.2 * len(deltas)), layout="constrained")
    axes = figure.subplots()
    together = np.concatenate(list(deltas.values()))
    low, high = np.floor(together.min()), np.ceil(together.max())
    bins: Any = np.linspace(low, max(high, low + 1), 61)
    for name, delta in deltas.items():
        axes.hist(delta, bins, histtype="step", label=f"{name}: {(delta <= bound).mean():.1%} at or below {bound:g}")
    axes.axvline(bound, color="black", linestyle="--")
    axes.set(xlabel="delta (with image minus without)", ylabel="tokens", yscale="log")
    figure.legend(loc="outside lower center", fontsize=8)
    return encode_figure(figure)
