"""From the tokens of an audit to its sentences and samples, and to what of the data is mismatched."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cal_cli.statistics.mixture import compute_posterior, estimate_share

RANKS = ("contradiction", "evidence")  # what samples are ranked by
LONGEST = 200  # characters of a stretch of text in a table


@dataclass
class AuditSummary:
    """What an audit found, without its tokens.

    Attributes:
        samples: a row for each sample, in the order of the data: `index`, `sample_id`, `tokens`, `evidence`
            (log p(text | image, prompt) - log p(text | prompt), in nats), `contradiction` (minus the smallest such sum
            over a stretch of consecutive tokens, at least 0), `begin` and `end` (the stretch, in tokens of the sample),
            `stretch` (its text), `loss` (mean cross-entropy with the image), `mean_delta` (evidence for each token) and
            `p_mismatch` (the probability that the text was not written for its image).
        shares: for `samples` and `sentences` the estimated share that is mismatched, see `estimate_share`.
    """

    samples: pd.DataFrame
    shares: dict[str, dict[str, Any]]

    def rank(self, by: str) -> pd.DataFrame:
        """Return the samples, the worst first, by one of `RANKS`; ties are in the order of the data."""
        return self.samples.sort_values(by, ascending=by == "evidence", kind="stable")


def summarize_audit(parts: Iterable[pa.Table]) -> AuditSummary:
    """Summarise the parts of an audit, tables with the columns of `TOKENS`.

    A text is modelled as written for its image, with probability p(text | image, prompt), or not, with
    p(text | prompt); the share of the latter has the largest likelihood over all samples, or sentences.

    Raises ValueError if there is no sample.
    """
    samples, sentences = [], []
    for part in parts:
        if not len(part):  # all of its samples are bad
            continue
        tokens = add_delta(part)
        samples.append(summarize_samples(tokens))
        sentences.append(summarize_sentences(tokens)[["index", "evidence"]])
    if not samples:
        raise ValueError("no sample could be audited")
    found, of_sentences = pd.concat(samples, ignore_index=True), pd.concat(sentences, ignore_index=True)
    shares = {
        "samples": estimate_share(found["evidence"].to_numpy()),
        "sentences": estimate_share(of_sentences["evidence"].to_numpy(), of_sentences["index"].to_numpy()),
    }
    found["p_mismatch"] = compute_posterior(found["evidence"].to_numpy(), shares["samples"]["value"])
    return AuditSummary(found, shares)


def add_delta(part: pa.Table) -> pd.DataFrame:
    """Return a part with the column `delta`, the log-probability with the image minus that without it, in nats."""
    tokens = part.to_pandas()
    return tokens.assign(delta=tokens["logprob_with_image"] - tokens["logprob_without_image"])


def summarize_samples(tokens: pd.DataFrame) -> pd.DataFrame:
    """Summarise the tokens of each sample: the columns of `AuditSummary.samples` without `p_mismatch`.

    The tokens of a sample are consecutive rows.
    """
    index, ids = tokens["index"].to_numpy(), tokens["sample_id"].to_numpy()
    texts = tokens["token"].where(~tokens["special"], "").to_numpy()
    deltas, logprobs = (tokens[name].to_numpy(np.float64) for name in ("delta", "logprob_with_image"))
    rows = []
    for first, last in pairwise([0, *(np.flatnonzero(np.diff(index)) + 1).tolist(), len(index)]):
        delta = deltas[first:last]
        smallest, begin, end = find_stretch(delta)
        rows.append(
            {
                "index": index[first],
                "sample_id": ids[first],
                "tokens": len(delta),
                "evidence": delta.sum(),
                "contradiction": -smallest,
                "begin": begin,
                "end": end,
                "stretch": "".join(texts[first + begin : first + end]).strip()[:LONGEST],
                "loss": -logprobs[first:last].mean(),
                "mean_delta": delta.mean(),
            }
        )
    return pd.DataFrame(rows)


def summarize_sentences(tokens: pd.DataFrame) -> pd.DataFrame:
    """Summarise the tokens of each sentence: `index`, `sample_id`, `turn`, `sentence`, `text` and `evidence`.

    Special tokens, such as the end token, count for the evidence and are not part of the text.
    """
    spoken = tokens.assign(token=tokens["token"].where(~tokens["special"], ""))
    grouped = spoken.groupby(["index", "sentence"], sort=False)
    return grouped.agg(
        sample_id=("sample_id", "first"),
        turn=("turn", "first"),
        text=("token", lambda pieces: "".join(pieces).strip()),
        evidence=("delta", "sum"),
    ).reset_index()


def find_stretch(delta: np.ndarray) -> tuple[float, int, int]:
    """Find the stretch of consecutive tokens with the smallest sum, float [tokens]; 0 and an empty stretch at best.

    It maximises the ratio of likelihoods for a part of the text that was written without the image. Returns the sum,
    and the stretch's begin and end. Source: the maximum-scoring segment of sequence analysis, in linear time.

    Example:
        >>> find_stretch(np.array([3.0, -2.0, 1.0, -4.0, 5.0]))
        (-5.0, 1, 4)
    """
    sums = np.concatenate([[0.0], np.cumsum(delta)])
    highest = np.maximum.accumulate(sums)
    end = int((sums - highest).argmin())
    begin = int(sums[: end + 1].argmax())
    return float(sums[end] - sums[begin]), begin, end


def list_detectors(samples: pd.DataFrame) -> dict[str, np.ndarray]:
    """List what may detect samples with a wrong text: numbers that are high for them, float [samples], by name."""
    return {
        "contradiction": samples["contradiction"].to_numpy(),
        "evidence against the image": -samples["evidence"].to_numpy(),
        "loss with the image": samples["loss"].to_numpy(),
        "mean difference": -samples["mean_delta"].to_numpy(),
    }
