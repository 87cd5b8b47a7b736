"""A benchmark's headline numbers on a fixed part of its questions, for a model in training."""

from collections.abc import Sequence
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object

from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.generation import count_tokens, generate_answers, make_batches
from cal_cli.evaluation.questions import Question
from cal_cli.statistics.bootstrap import sum_by_group


class Scorer:
    """Scores a model on questions that are evenly spread over a benchmark; the processes share the questions.

    Args:
        benchmark: its questions without a known answer are left out.
        headline: names of the values to return; empty means the first.
        limit: number of questions, at most.
        processor: of the model.
        batch_size: questions answered at once by a device.
    """

    def __init__(
        self, benchmark: Benchmark, headline: Sequence[str], limit: int, processor: Any, batch_size: int
    ) -> None:
        self.metric, self.headline = benchmark.metric, list(headline)
        self.max_new_tokens = benchmark.max_new_tokens
        self.questions = spread([question for question in benchmark.questions if question.answers], limit)
        self.processor, self.batch_size = processor, batch_size

    def score(self, model: Any) -> dict[str, float]:
        """Let a model answer, and return the headline numbers; the model is left in evaluation mode."""
        state = PartialState()
        model.eval()
        lengths = count_tokens(self.questions, self.processor)
        groups = make_batches(self.questions, lengths, self.batch_size)[state.process_index :: state.num_processes]
        mine = generate_answers(model, self.processor, self.questions, self.batch_size, self.max_new_tokens, groups)
        answers = {place: text for share in gather_object([mine]) for place, text in share.items()}
        parts = self.metric.score(self.questions, [answers[place] for place in range(len(self.questions))])
        sums = sum_by_group(parts, [question.id for question in self.questions])
        values = self.metric.compute({name: column.sum() for name, column in sums.items()})
        names = [name for name in self.headline if name in values] or list(values)[:1]
        return {name: float(values[name]) for name in names}


def spread(questions: Sequence[Question], limit: int) -> list[Question]:
    """Return at most `limit` questions, at equal distances."""
    count = min(limit, len(questions))
    return [questions[number * len(questions) // count] for number in range(count)]
