"""What is read of lmms-eval's results: a document in the form that its 0.7.3 writes."""

import pytest

from cal_cli.evaluation.lmms_eval import read_document

DOCUMENT = {
    "results": {
        "pope": {
            "alias": "pope",
            "pope_accuracy,none": 0.8625,
            "pope_accuracy_stderr,none": "N/A",
            "pope_f1_score,none": 0.85,
            "pope_f1_score_stderr,none": 0.01,
            "pope_f1_score_stderr_clt,none": 0.01,
            "submission,none": None,
        }
    },
    "configs": {
        "pope": {"generation_kwargs": {"max_new_tokens": 128}, "lmms_eval_specific_kwargs": {"pre_prompt": ""}}
    },
    "n-samples": {"pope": {"original": 9000, "effective": 400}},
}


def test_values_intervals_and_settings_are_read():
    found = read_document(DOCUMENT, "pope")
    assert found["n"] == 400 and found["generation"] == {"max_new_tokens": 128}
    assert found["prompt"] == {"pre_prompt": ""}
    assert found["metrics"]["pope_accuracy"] == {"value": 0.8625, "ci95": None}
    assert found["metrics"]["pope_f1_score"]["value"] == 0.85
    assert found["metrics"]["pope_f1_score"]["ci95"] == pytest.approx([0.8304, 0.8696], abs=1e-4)
    assert set(found["metrics"]) == {"pope_accuracy", "pope_f1_score"}
