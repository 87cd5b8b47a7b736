"""Evaluate checkpoints on benchmarks: ask every question once, in any number of processes, and score the answers."""

import hashlib
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from rich.console import Console

from cal_cli.data.collator import to_messages
from cal_cli.evaluation.answer_log import AnswerLog
from cal_cli.evaluation.benchmark import IMAGE, Benchmark
from cal_cli.evaluation.generation import count_tokens, generate_answers, make_batches, make_turns
from cal_cli.evaluation.questions import Question
from cal_cli.evaluation.results import load_results, score_answers
from cal_cli.models.load import load_checkpoint
from cal_cli.runtime.console import show_progress
from cal_cli.runtime.provenance import get_device_name, get_versions
from cal_cli.runtime.runs import get_run_name


def render_prompt(question: Question, processor: Any) -> str:
    """Render a question as the model reads it, with each image as its placeholder token."""
    images: list[Any] = [None] * question.question.count(IMAGE)
    return processor.apply_chat_template(to_messages(make_turns(question), images), add_generation_prompt=True)


class Evaluator:
    """Lets checkpoints answer the questions of benchmarks; keeps the last model that it loaded.

    Args:
        state: the processes that share the questions.
        console: for messages and progress.
        command: the command line that regenerates the results.
        batch_size: questions answered at once by a device.
        dtype: of the weights, see `load_checkpoint`.
        anew: discard the answers of an interrupted evaluation, which otherwise are used again.
    """

    def __init__(
        self,
        state: PartialState,
        console: Console,
        command: str,
        batch_size: int,
        dtype: str | None,
        anew: bool = False,
    ) -> None:
        self.state, self.console, self.command = state, console, command
        self.batch_size, self.dtype, self.anew = batch_size, dtype, anew
        self.loaded: tuple[Path, Any, Any] | None = None

    def load(self, checkpoint: Path) -> tuple[Any, Any]:
        """Load a checkpoint's model and processor."""
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # frees the memory first: two models might not fit
            self.loaded = (checkpoint, *load_checkpoint(str(checkpoint), self.dtype, self.state.device))
        return self.loaded[1:]

    def evaluate(
        self, checkpoint: Path, name: str, benchmark: Benchmark, settings: dict[str, Any], folder: Path
    ) -> dict[str, Any]:
        """Let a checkpoint answer and score its answers; return the contents of `results.json` in `folder`.

        `settings` are what the results depend on; they are compared with those of earlier results.
        """
        state = self.state
        model, processor = self.load(checkpoint)
        asked = benchmark.questions
        prompts = [render_prompt(question, processor) for question in asked]
        prompt_hash = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        dtype = str(model.dtype).removeprefix("torch.")
        identity = settings | {"prompts": prompt_hash, "computed in": dtype, "versions": get_versions()}
        log = AnswerLog(folder, identity, state.process_index)
        if state.is_main_process:
            differing = log.begin(self.anew)
            if differing:
                self.console.print(f"{folder}: starting again; the earlier answers differ in {', '.join(differing)}")
        state.wait_for_everyone()
        answers = log.read()
        state.wait_for_everyone()  # no process writes before all have read
        if answers:
            self.console.print(f"{folder}: continuing after {len(answers)} of {len(asked)} questions")
        answers |= self._answer(f"{get_run_name(checkpoint)}, {name}", model, processor, benchmark, answers, log)
        if not state.is_main_process:
            state.wait_for_everyone()
            return load_results(folder, settings)[0] or {}
        generation = {"do_sample": False, "max_new_tokens": benchmark.max_new_tokens, "batch_size": self.batch_size}
        facts = {
            "checkpoint": str(checkpoint),
            "prompt": prompts[0],
            "prompts_sha256": prompt_hash,
            "generation": generation | {"dtype": dtype},
            "settings": settings,
            "device": get_device_name(),
            "processes": state.num_processes,
            "command": self.command,
        }
        results = score_answers(name, benchmark, [answers[question.id] for question in asked], facts, folder)
        log.close()
        state.wait_for_everyone()
        return results

    def _answer(
        self, title: str, model: Any, processor: Any, benchmark: Benchmark, known: dict[str, str], log: AnswerLog
    ) -> dict[str, str]:
        """Answer this process's share of the questions without a known answer; return those of all processes."""
        asked = benchmark.questions
        groups = make_batches(asked, count_tokens(asked, processor), self.batch_size)
        missing = [[batch for batch in group if any(asked[i].id not in known for i in batch)] for group in groups]
        mine = [group for group in missing if group][self.state.process_index :: self.state.num_processes]
        new: dict[str, str] = {}
        with show_progress(title, sum(len(batch) for group in mine for batch in group), self.console) as advance:

            def keep(found: dict[int, str]) -> None:
                by_id = {asked[place].id: text for place, text in found.items()}
                log.add(by_id)
                new.update(by_id)
                advance(len(found))

            generate_answers(model, processor, asked, self.batch_size, benchmark.max_new_tokens, mine, keep)
        shares = gather_object([new])
        assert len(set().union(*shares)) == sum(map(len, shares))  # no question was answered by two processes
        return {identity: text for share in shares for identity, text in share.items()}
