"""How often the intervals of a review hold the truth: `python benchmarks/review_coverage.py`, two minutes of one core.

Eighteen data sets of which some texts are wrong, ranked by a number that is higher for wrong texts, weakly or strongly.
Of each, 200 reviews of 100 samples, with other seeds: the fraction whose 95 % intervals hold the number of wrong texts,
and the precision and the recall of two cuts.
"""

import itertools

import numpy as np

from cal_cli.inspection.review import Design, Review

REVIEWS = 200


def covers(interval: list[float], truth: float) -> bool:
    """Return whether an interval holds a number, up to rounding."""
    return interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


def main() -> None:
    """Print the coverage for each data set."""
    generator = np.random.default_rng(0)
    print(f"{'samples':>8} {'wrong':>6} {'shift':>6} {'total':>7} {'precision':>18} {'recall':>18}")
    for samples, fraction, shift in itertools.product((500, 5000, 50_000), (0.01, 0.1, 0.5), (0.5, 3.0)):
        held = np.zeros((REVIEWS, 5))
        for seed in range(REVIEWS):
            wrong = generator.random(samples) < fraction
            ranked = np.argsort(-(generator.normal(size=samples) + shift * wrong))
            assigned = Design("contradiction", samples, 100, seed).assign(ranked)
            chosen = assigned["index"][assigned["turn"] >= 0].tolist()
            review = Review(assigned, {place: "wrong" if wrong[place] else "right" for place in chosen})
            held[seed, 0] = covers(review.estimate_total()["ci95"], wrong.sum())
            for number, cut in enumerate((100, samples // 5)):
                found, true = review.describe_cut(ranked, cut), wrong[ranked[:cut]].sum()
                held[seed, 1 + number] = covers(found["precision"]["ci95"], true / cut)
                held[seed, 3 + number] = covers(found["recall"]["ci95"], true / max(wrong.sum(), 1))
        total, *cuts = held.mean(axis=0)
        precision, recall = (" ".join(f"{value:8.3f}" for value in pair) for pair in (cuts[:2], cuts[2:]))
        print(f"{samples:8} {fraction:6} {shift:6} {total:7.3f} {precision:>18} {recall:>18}", flush=True)


if __name__ == "__main__":
    main()
