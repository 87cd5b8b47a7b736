"""Ask checkpoints every question of a benchmark once, in any number of processes, and score the answers."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from rich.console import Console

from cal_cli.data.collator import Collator, to_messages
from cal_cli.evaluation.benchmark import IMAGE, Benchmark
from cal_cli.evaluation.metrics import UNREADABLE, Question
from cal_cli.evaluation.results import AnswerLog, load_results, score_answers
from cal_cli.models.load import load_checkpoint
from cal_cli.runtime.console import show_progress
from cal_cli.runtime.errors import InputError, shorten
from cal_cli.runtime.runs import get_device_name, get_run_name, get_versions
from cal_cli.statistics.bootstrap import sum_by_group


@dataclass
class Evaluator:
    """Lets checkpoints answer the questions of benchmarks; keeps the last model that it loaded."""

    state: PartialState  # the processes that share the questions
    console: Console
    command: str  # that regenerates the results
    batch_size: int  # questions answered at once by a device
    dtype: str | None  # of the weights, see `load_checkpoint`
    anew: bool = False  # discard the answers of an interrupted evaluation, which otherwise are used again
    max_bad_fraction: float = 0.0  # of the questions: those whose image cannot be read, which are scored as wrong
    loaded: tuple[Path, Any, Any] | None = None

    def load(self, checkpoint: Path) -> tuple[Any, Any]:
        """Load a checkpoint's model and processor."""
        if self.loaded is None or self.loaded[0] != checkpoint:
            self.loaded = None  # frees the memory first: two models might not fit
            model, processor = load_checkpoint(str(checkpoint), self.dtype, self.state.device)
            if processor.chat_template is None:
                raise InputError(
                    f"checkpoint={checkpoint}: it has no chat template to write questions with: put its "
                    "chat_template.jinja into the folder"
                )
            self.loaded = (checkpoint, model, processor)
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
        for note in (add_end_token(model, processor), describe_constraints(model)):
            if note is not None:
                self.console.print(note, soft_wrap=True, markup=False)
        # as the model reads them, with each image as its placeholder token
        blank = [to_messages(make_turns(question), [None] * question.question.count(IMAGE)) for question in asked]
        prompts = [processor.apply_chat_template(messages, add_generation_prompt=True) for messages in blank]
        prompt_hash = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        dtype = str(model.dtype).removeprefix("torch.")
        identity = settings | {"prompts": prompt_hash, "computed in": dtype, "versions": get_versions()}
        if constraints := find_constraints(model):
            identity["generation_config"] = constraints
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
            "generation": generation | {"dtype": dtype} | constraints,
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
        allowed, bad = int(self.max_bad_fraction * len(asked)), list(known.values()).count(UNREADABLE)

        def report(question: Question, error: InputError) -> None:
            nonlocal bad
            bad += 1
            if bad > allowed:
                raise InputError(
                    f"question {shorten(question.id)}: {error}; {bad} such questions are more than max_bad_fraction="
                    f"{self.max_bad_fraction} allows of {len(asked)}, which are scored as wrong"
                ) from error
            self.console.print(f"question {shorten(question.id)}: {error}; it is scored as wrong", markup=False)

        with show_progress(title, sum(len(batch) for group in mine for batch in group), self.console) as advance:

            def keep(texts: dict[int, str]) -> None:
                by_id = {asked[place].id: text for place, text in texts.items()}
                log.add(by_id)
                new.update(by_id)
                advance(len(texts))

            generate_answers(model, processor, asked, self.batch_size, benchmark.max_new_tokens, mine, keep, report)
        shares = gather_object([new])
        assert len(set().union(*shares)) == sum(map(len, shares))  # no question was answered by two processes
        return {identity: text for share in shares for identity, text in share.items()}


def add_end_token(model: Any, processor: Any) -> str | None:
    """Let generation end where the chat template ends answers, as training teaches; return a sentence if it did not."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    try:
        end = Collator(processor).find_end({"id": "", "image": None, "conversations": turns})
    except Exception:  # a processor with which we cannot train may yet ask questions
        return None
    given = model.generation_config.eos_token_id
    known = given if isinstance(given, list) else [given]
    if end is None or end in known:
        return None
    model.generation_config.eos_token_id = [end, *(number for number in known if number is not None)]
    token = processor.tokenizer.convert_ids_to_tokens(end)
    return f"answers end at {token} too, as in the chat template: generation_config.json has no such eos_token_id"


# settings of a generation_config.json that change greedy answers; sampling is off, and with it what only sampling reads
CONSTRAINTS = (
    "repetition_penalty",
    "encoder_repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size",
    "min_length",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "stop_strings",
)


def find_constraints(model: Any) -> dict[str, Any]:
    """Return by name what the checkpoint's generation_config.json imposes on greedy answers, such as a penalty."""
    given = model.generation_config.to_diff_dict()
    return {name: given[name] for name in CONSTRAINTS if given.get(name)}


def describe_constraints(model: Any) -> str | None:
    """Describe the constraints on a checkpoint's answers in a sentence; None if there are none."""
    listed = ", ".join(f"{name}={value}" for name, value in find_constraints(model).items())
    return f"the checkpoint's generation_config.json changes its greedy answers: {shorten(listed)}" if listed else None


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
        for question in self.questions:  # so that no image ends a training
            try:
                question.images()
            except InputError as error:
                raise InputError(f"evaluate_every: question {shorten(question.id)}: {error}") from error
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


def make_batches(questions: Sequence[Question], lengths: Sequence[int], batch_size: int) -> list[list[list[int]]]:
    """Order questions into batches, longest first, with those about one image together.

    Returns groups of batches of indices into `questions`. An image's questions are in one group, and in one batch
    unless there are too many. Batches do not depend on which process takes which group.
    """
    by_image: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_image.setdefault(question.image_name or f"none-{place}", []).append(place)
    images = [sorted(places, key=lambda place: -lengths[place]) for places in by_image.values()]
    images.sort(key=lambda places: -lengths[places[0]])
    groups: list[list[list[int]]] = []
    for places in images:
        if groups and len(groups[-1]) == 1 and len(groups[-1][0]) + len(places) <= batch_size:
            groups[-1][0] += places
        else:
            groups.append([places[start : start + batch_size] for start in range(0, len(places), batch_size)])
    return groups


def count_tokens(questions: Sequence[Question], processor: Any) -> list[int]:
    """Count the tokens of each question's text, without those of its images."""
    return [len(ids) for ids in processor.tokenizer([question.question for question in questions])["input_ids"]]


@torch.inference_mode()
def generate_answers(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch_size: int,
    max_new_tokens: int,
    groups: Sequence[Sequence[Sequence[int]]] | None = None,
    keep: Callable[[dict[int, str]], None] = lambda answers: None,
    report: Callable[[Question, InputError], None] | None = None,
) -> dict[int, str]:
    """Answer questions by greedy decoding, in batches padded on the left.

    `groups` are batches of indices into `questions`, as from `make_batches` (None means all questions); `keep` is
    called after each batch with its answers by index; `report` is called for a question whose image cannot be read,
    with the error, and the answer is `UNREADABLE` (None means raise the error).

    Returns the answers by index, without special tokens and outer white space.

    Raises InputError, which names the question, if one does not fit into memory or the processor refuses it.
    """
    if groups is None:
        groups = make_batches(questions, count_tokens(questions, processor), batch_size)
    answers: dict[int, str] = {}
    for batch in (batch for group in groups for batch in group):
        images: dict[str | None, list[Any]] = {}
        texts: dict[int, str] = {}
        for place in batch:
            question = questions[place]
            try:
                if question.image_name not in images:
                    images[question.image_name] = question.images()
            except InputError as error:
                if report is None:
                    raise InputError(f"question {shorten(question.id)}: {error}") from error
                report(question, error)
                texts[place] = UNREADABLE
        readable = [place for place in batch if place not in texts]
        if readable:
            texts |= answer_batch(model, processor, questions, readable, images, max_new_tokens)
        answers |= texts
        keep(texts)
    return answers


def answer_batch(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    batch: list[int],
    images: Mapping[str | None, list[Any]],
    max_new_tokens: int,
) -> dict[int, str]:
    """Answer one batch, by index; one that does not fit into memory, or is refused, is halved, repeatedly if needed."""
    try:
        texts = answer_questions(model, processor, [questions[place] for place in batch], images, max_new_tokens)
        return dict(zip(batch, texts, strict=True))
    except Exception as error:
        refused = isinstance(error, ValueError | IndexError)  # by the processor: one of the questions is the cause
        if not refused and not should_reduce_batch_size(error):
            raise
        if len(batch) == 1 and refused:
            problem = f"the model's processor refuses it: {str(error).splitlines()[0]}"
            raise InputError(f"question {shorten(questions[batch[0]].id)}: {problem}") from error
        if len(batch) == 1:
            raise InputError(
                f"question {questions[batch[0]].id!r} does not fit into memory, even alone: give a smaller "
                "benchmark.max_new_tokens, a dtype with fewer bits (dtype=bfloat16) or a larger device"
            ) from error
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(batch) // 2
    halves = (
        answer_batch(model, processor, questions, half, images, max_new_tokens)
        for half in (batch[:middle], batch[middle:])
    )
    return {place: text for half in halves for place, text in half.items()}


def answer_questions(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    images: Mapping[str | None, list[Any]],
    max_new_tokens: int,
) -> list[str]:
    """Answer questions in one batch, with the images by their names."""
    messages = [to_messages(make_turns(question), images[question.image_name]) for question in questions]
    batch = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=True,
        return_tensors="pt",
        processor_kwargs={"padding": True, "padding_side": "left"},
    ).to(model.device, model.dtype)
    pad = processor.tokenizer.pad_token_id
    output = model.generate(**batch, do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, pad_token_id=pad)
    new_tokens = output[:, batch["input_ids"].shape[1] :]
    return [text.strip() for text in processor.batch_decode(new_tokens, skip_special_tokens=True)]


def make_turns(question: Question) -> list[dict[str, str]]:
    """Return a question as the turn of a conversation."""
    return [{"from": "human", "value": question.question}]
