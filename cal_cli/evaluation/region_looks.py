"""The metric of `cal inspect view=objects`: means of what was measured for each region of a picture."""

import json
from typing import Any

from cal_cli.evaluation.metrics import Metric, Parts, Sums, divide
from cal_cli.evaluation.questions import Question

NAMES = {
    "attention": "attention_inside",
    "relevancy": "relevancy_inside",
    "on_picture": "attention_on_picture",
    "area": "area_inside",
    "projected": "projected_word_accuracy",
    "lens": "lens_word_accuracy",
}


class RegionLooks(Metric):
    """Means over regions; a prediction is what `measure_regions` returns for one, as JSON."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        measured = json.loads(prediction)
        return {"score": measured["attention"], "n": 1.0, **measured}

    def compute(self, sums: Sums) -> dict[str, Any]:
        return {name: divide(sums[part], sums["n"]) for part, name in NAMES.items() if part in sums}
