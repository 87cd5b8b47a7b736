"""The processes of a run: `launch=ddp` starts one for each GPU; torchrun and `accelerate launch` do so too.

Every process runs the same command and reads its place from the environment (`RANK`, `WORLD_SIZE`, ...), as under
torchrun. When one ends, all end; a signal to the command reaches all of them.

The processes are started by `torch.multiprocessing`, not by torch's elastic launcher: on Ctrl-C the latter kills its
workers after 30 seconds, which is too short to save a large model.
"""

import logging
import os
import runpy
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import multiprocessing

from cal_cli.runtime.errors import InputError

SHARDS = ("gradients", "parameters")


@dataclass
class LaunchConfig:
    """The types of `conf/launch/`, which documents each key."""

    processes: int | None
    machines: int
    machine: int
    address: str
    port: int | None
    shard: str | None
    offload: bool


def join(launch: LaunchConfig) -> PartialState:
    """Join the processes of the run."""
    if launch.shard is not None:
        # accelerate reads these here, and then also gathers tensors on GPUs to the CPU
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    return get_process_state()


def get_process_state() -> PartialState:
    """Return the place of this process among those of its run."""
    return PartialState(cpu=not torch.cuda.is_available())


def count_cores() -> int:
    """Return the number of cores that this process may use; more workers than that slow it down, as torch warns."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_worker() -> bool:
    """Return whether this process is one of several, started by us, torchrun or `accelerate launch`."""
    return "LOCAL_RANK" in os.environ


def count_processes(launch: LaunchConfig, elsewhere: bool = False) -> int:
    """Return the number of processes of a launch on this machine, or `elsewhere`, where the GPUs are unknown."""
    gpus = torch.cuda.device_count()
    processes = max(gpus, 1) if launch.processes is None else launch.processes
    if processes < 1 or launch.machines < 1:
        raise InputError(f"launch.processes={processes}, launch.machines={launch.machines}: each must be at least 1")
    if gpus and processes > gpus and not elsewhere:
        raise InputError(f"launch.processes={processes}: this machine has {gpus} GPUs; give at most that many")
    if not 0 <= launch.machine < launch.machines:
        raise InputError(f"launch.machine={launch.machine}: allowed are 0 to {launch.machines - 1}")
    if launch.shard is not None:
        if launch.shard not in SHARDS:
            raise InputError(f"launch.shard={launch.shard}: allowed are null, {' and '.join(SHARDS)}")
        if processes * launch.machines < 2:
            raise InputError(
                f"launch.shard={launch.shard}: one process has nothing to share; give launch.processes=2 or more, or "
                "launch=single"
            )
    elif launch.offload:
        raise InputError("launch.offload=true: needs launch.shard=gradients or parameters")
    if launch.machines > 1 and launch.port is None:
        raise InputError("launch.port is null: give a port that is free on machine 0, as there are several machines")
    return processes


def distribute(launch: LaunchConfig, processes: int, words: Sequence[str], folder: Path) -> bool:
    """Run a job in several processes, if its launch has several and this is not one of them; return whether it did so.

    Each is `python -m cal_cli` with the words of the job and its folder. Exits with the code of the first process that
    failed, with 1 if one was killed.
    """
    if processes * launch.machines == 1 or is_worker():
        return False
    if code := _run_processes(launch, processes, [*words, f"hydra.run.dir='{folder}'"], folder):
        raise SystemExit(code)
    return True


def _run_processes(launch: LaunchConfig, processes: int, words: list[str], folder: Path) -> int:
    environment = {
        "WORLD_SIZE": str(processes * launch.machines),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": str(launch.port or find_free_port()),
    }
    # set before the processes load torch: together they share the cores of this machine
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # its warnings are reported below
    first = launch.machine * processes
    context = multiprocessing.start_processes(
        _enter, (first, environment, words), nprocs=processes, join=False, start_method="spawn"
    )
    assert context is not None  # because join=False

    def pass_on(number: int, frame: object) -> None:
        for process in context.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join(timeout=1.0):
            pass
        return 0
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name is None:
            return error.exit_code
        print(
            f"{folder}: process {first + error.error_index} was ended by {error.signal_name}, which ends the run. The "
            "same command continues it from its last checkpoint.",
            file=sys.stderr,
        )
        return 1
    except multiprocessing.ProcessRaisedException as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _enter(index: int, first: int, environment: dict[str, str], words: list[str]) -> None:
    """Become one process of the run, in its own process group, so that Ctrl-C reaches it only through `pass_on`."""
    os.setpgrp()
    os.environ |= environment | {"RANK": str(first + index), "LOCAL_RANK": str(index)}
    sys.argv = words
    runpy.run_module("cal_cli", run_name="__main__")


def find_free_port() -> int:
    """Return a port of this machine that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
