"""Kill commands at random moments, start them again, and compare what they leave with an undisturbed run.

`CAMPAIGN_KILLS` is the number of kills of each command, `CAMPAIGN_SEED` that of their moments.
"""

import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.torch import load_file

from cal_cli.runtime.runs import find_last_checkpoint
from tests.cal import SERVER, cal, enter

KILLS = int(os.environ.get("CAMPAIGN_KILLS", "1"))
SEED = int(os.environ.get("CAMPAIGN_SEED", "0"))
CHAIN = 5  # kills of one command, one after the other, before it may end
SMALL = ["data.n=64", "batch_size=8", "save_steps=2", "logging_steps=1", "noise.ratio=0.5"]
COMMANDS = {
    "train": [*SMALL, "objective=cal"],
    "train_cached": [*SMALL, "objective.contrast=cached", "epochs=2"],
    "train_posterior": [*SMALL, "objective=posterior"],
    "train_lora": [*SMALL, "peft=lora", "parts.vision_tower=0"],
    "sweep": ["-m", *SMALL, "max_steps=4", "objective=ce,cal"],
    "eval": ["checkpoint=tiny", "benchmark.n=16", "batch_size=4"],
    "noise_inject": ["data.n=60", "ratio=0.5", "output=noisy"],
    "data_check": ["data.path=data/data.json", "data.image_folder=data/images", "workers=0"],
    "data_audit": ["data.n=300", "noise.ratio=0.2", "page_samples=4", "batch_size=8"],
    "token_weight_dump": ["checkpoint=tiny", "data.n=60", "samples=40", "noise.ratio=0.5", "heatmap_samples=4"],
}
VARYING = ("wall_seconds", "peak_memory_bytes", "tokens_per_second", "samples_per_second")


def words_of(name):
    command = {"sweep": "train", "eval": "eval"}.get(name, name.replace("_", "-"))
    return ["train" if command.startswith("train") else command, *COMMANDS[name]]


def prepare(folder, name):
    folder.mkdir()
    if name == "data_check":
        cal("noise-inject", "data.n=60", "ratio=0", "output=data", folder=folder)


def start(words, folder, streams):
    """Start a command in a process group of its own."""
    process = SERVER.Process(target=lead, args=(words, str(folder), *map(str, streams)))
    process.start()
    return process


def lead(words, folder, *streams):
    os.setsid()
    enter(words, folder, *streams)


def kill(words, folder, streams, moment):
    """Kill a command after some seconds; return None, or the seconds that it took if it ended before."""
    begin = time.perf_counter()
    process = start(words, folder, streams)
    process.join(moment)
    if process.exitcode is not None:
        return time.perf_counter() - begin
    with contextlib.suppress(ProcessLookupError):  # it has just ended, or does not lead its group yet
        os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.join()
    return None


def find_broken(folder):
    """The files that have their own name, but not their whole content."""
    broken = []
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder).parts
        if path.is_dir() or any(part.startswith(".") for part in within) or "checkpoints" in within:
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".jsonl":  # the last line may be incomplete: files that grow line by line
                [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            elif path.suffix == ".parquet":
                pq.read_table(path)
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix == ".safetensors":
                load_file(path)
            elif path.suffix == ".html":
                assert path.read_text().rstrip().endswith("</html>")
        except Exception as error:
            broken.append(f"{path.relative_to(folder)}: {error}")
    for run in folder.glob("runs/train/*/*"):
        last = find_last_checkpoint(run) if (run / "checkpoints").is_dir() else None
        if last and not {"optimizer.pt", "scheduler.pt"} <= {path.name for path in last.iterdir()}:
            broken.append(f"{last} is incomplete")
    return broken


def read(path, folder):
    """What a file must have in common with that of another run."""
    if path.name in ("summary.json", "metrics.jsonl", "results.json", "audit.json"):
        lines = [json.loads(line) for line in path.read_text().splitlines()] if path.suffix == ".jsonl" else None
        values = lines if lines is not None else [json.loads(path.read_text())]
        return [{key: value for key, value in one.items() if key not in VARYING} for one in values]
    if path.name == "hashes.json":  # by path and time
        return sorted(json.loads(path.read_text()).values())
    if path.suffix == ".parquet":
        return pq.read_table(path)
    return path.read_bytes().replace(str(folder).encode(), b"")


def collect(folder):
    """All that a command has left, checkpoints' optimizers and Hydra's notes aside, by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder).parts
        if path.is_file() and not {".hydra", "multirun.yaml"} & set(within):
            in_checkpoint = "checkpoints" in within and path.suffix != ".safetensors"
            found["/".join(within)] = None if in_checkpoint else read(path, folder)
    return found


@pytest.fixture(scope="module")
def killed(request):
    """The number of kills, printed in the end."""
    counts = {}
    yield counts
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nkills: {sum(counts.values())} ({', '.join(f'{name} {n}' for name, n in counts.items())})")


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_moment_ends_as_an_undisturbed_one(name, tmp_path, killed):
    words, streams = words_of(name), [tmp_path / "stdout", tmp_path / "stderr"]
    prepare(tmp_path / "whole", name)
    begin = time.perf_counter()
    start(words, tmp_path / "whole", streams).join()
    seconds = time.perf_counter() - begin
    expected = collect(tmp_path / "whole")
    assert expected and not find_broken(tmp_path / "whole")
    moments = random.Random(f"{name}-{SEED}")
    done, killed[name] = 0, 0
    while killed[name] < KILLS:
        folder = tmp_path / f"killed-{done}"
        prepare(folder, name)
        for _ in range(min(CHAIN, KILLS - killed[name])):
            moment = moments.uniform(0.1, seconds)
            if (took := kill(words, folder, streams, moment)) is not None:
                seconds = min(seconds, took)  # the machine has less to do than before
                break
            killed[name] += 1
            assert not find_broken(folder), f"after {moment:.2f} of {seconds:.2f} s"
        process = start(words, folder, streams)
        process.join()
        assert process.exitcode == 0, Path(streams[1]).read_text()[-2000:]
        found = collect(folder)
        assert found.keys() == expected.keys()
        different = [path for path in expected if found[path] != expected[path]]
        assert not different
        done += 1
