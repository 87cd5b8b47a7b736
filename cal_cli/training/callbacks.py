"""Callbacks of `cal train`: metrics, progress, checkpoints, a stop on Ctrl-C; and the bad samples of a run."""

import json
import signal
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from rich.console import Console
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from cal_cli.data.sample import Bad
from cal_cli.objective import RuleLoss
from cal_cli.runtime.console import Notify, show_progress
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import remove_folder, write_whole
from cal_cli.runtime.runs import list_checkpoints


class MetricsWriter(TrainerCallback):
    """Write one JSON object for each logged step to `path`; a resumed run removes the lines after its first step.

    The estimates of the objective are among its values. Scores of the model in training have a line of their own.
    """

    def __init__(self, path: Path, objective: RuleLoss) -> None:
        self.path, self.objective = path, objective

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if (step := read_step(line)) is not None and step <= state.global_step]
        if state.is_world_process_zero:
            write_whole(self.path, "".join(line + "\n" for line in kept))
        self.tokens, self.time = state.num_input_tokens_seen, time.perf_counter()

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "eval_seconds" in logs:
            self.time += logs["eval_seconds"]  # which is no training time
            self._write({"step": state.global_step} | logs, state)
        if not logs or "loss" not in logs:
            return
        now = time.perf_counter()
        logs["tokens_per_second"] = (state.num_input_tokens_seen - self.tokens) / (now - self.time)
        self.tokens, self.time = state.num_input_tokens_seen, now
        names = ("loss", "learning_rate", "grad_norm", "weight_mean", "delta_mean", "share_at_alpha", "share_at_beta")
        line = {"step": state.global_step, "epoch": state.epoch} | {name: logs.get(name) for name in names}
        line |= self.objective.estimates
        line["tokens_per_second"] = logs["tokens_per_second"]
        self._write(line, state)

    def _write(self, line: dict[str, Any], state: TrainerState) -> None:
        if state.is_world_process_zero:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def read_step(line: str) -> int | None:
    """Return the step of a line of `metrics.jsonl`; None for a line that a kill left incomplete."""
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


class ProgressReporter(TrainerCallback):
    """Show step, loss, tokens per second and time left, see `show_progress`.

    It reads `tokens_per_second` from the logs, so it must come after `MetricsWriter`.
    """

    def __init__(self, title: str, console: Console) -> None:
        self.title, self.console, self.values = title, console, ""
        self.shown = ExitStack()

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        progress = show_progress(f"{self.title}  step", state.max_steps, self.console, state.global_step, final=True)
        self.advance = self.shown.enter_context(progress)

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if not control.should_log:  # else `on_log` follows
            self.advance(1, self.values)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.values = f"loss {logs['loss']:.4f}  {logs['tokens_per_second']:,.0f} tokens/s"
            self.advance(1, self.values)

    def close(self) -> None:
        """Leave the terminal to others; may be called at any time, more than once."""
        self.shown.close()


class CheckpointRemover(TrainerCallback):
    """After each save remove all but the newest `keep` checkpoints, those of the most steps.

    The Trainer's `save_total_limit` removes those that were changed first, file by file. A kill in the middle of it
    leaves a checkpoint that looks complete and new, and that a resumed run keeps in place of a whole one.
    """

    def __init__(self, keep: int) -> None:
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if args.should_save:
            for checkpoint in list_checkpoints(Path(str(args.output_dir)))[: -self.keep]:
                remove_folder(checkpoint)


class StopOnSignal(TrainerCallback):
    """On the first Ctrl-C (or SIGTERM) save after the current step and stop; the second has its usual effect."""

    def __init__(self) -> None:
        self.stopped = False

    def __enter__(self) -> "StopOnSignal":
        self._before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        signal.signal(number, self._before[signal.Signals(number)])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if args.world_size > 1:  # all processes stop after the same step
            stopped = torch.tensor(int(self.stopped), device=args.device)
            torch.distributed.all_reduce(stopped, torch.distributed.ReduceOp.MAX)
            self.stopped = bool(stopped)
        if self.stopped and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True


REPORTED = 10  # messages; the file has all samples


class BadSamples:
    """The bad samples of a run: at most `allowed`, in a file that a resumed run continues."""

    def __init__(self, path: Path, allowed: int, notify: Notify) -> None:
        self.path, self.allowed, self.notify = path, allowed, notify
        text = path.read_text() if path.is_file() else ""
        whole = text[: text.rfind("\n") + 1]  # a kill may have left the last line incomplete
        if whole != text:
            write_whole(path, whole)
        self.known = {Bad(**json.loads(line)) for line in whole.splitlines()}

    def count(self) -> int:
        """Return the number of samples in the file, those of other processes included."""
        return len(self.path.read_text().splitlines()) if self.path.is_file() else 0

    def add(self, samples: Iterable[Bad]) -> None:
        """Record the samples that are not recorded yet. Raises InputError if there are more than allowed."""
        for bad in samples:
            if bad in self.known:
                continue
            self.known.add(bad)
            with self.path.open("a") as file:
                file.write(json.dumps(asdict(bad)) + "\n")
            if len(self.known) <= REPORTED:
                self.notify(f"left out: sample {bad.id}: {bad.problem}")
            if len(self.known) > self.allowed:
                raise InputError(
                    f"{len(self.known)} samples are bad, more than data.max_bad_fraction allows ({self.allowed}); "
                    f"{self.path} lists them; cal data-check finds all bad samples and writes the others"
                )
