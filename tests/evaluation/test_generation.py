"""Batched, left-padded greedy answers equal answers one by one."""

from PIL import Image

from cal_cli.evaluation.generation import generate_answers


def test_batches_answer_as_single_questions_do(model, processor):
    questions = [
        {
            "image": Image.new("RGB", (48, 48), (number * 40, 90, 10)),
            "question": "<image>\n" + "what is it? " * (number + 1),
        }
        for number in range(4)
    ] + [{"image": None, "question": "no picture at all?"}]
    model.eval()
    together = generate_answers(model, processor, questions, batch_size=5, max_new_tokens=8)
    alone = [generate_answers(model, processor, [question], 1, 8)[0] for question in questions]
    assert together == alone
    assert any(together)


def test_progress_counts_every_question(model, processor):
    questions = [{"image": None, "question": "x"}] * 5
    seen = []
    generate_answers(model, processor, questions, 2, 1, seen.append)
    assert seen == [2, 2, 1]
