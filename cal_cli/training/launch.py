"""Processes of a run: `launch=ddp` of `cal train` or `cal eval` starts one a GPU; or torchrun may.

Each process runs the same command and finds its place in the environment (`RANK`, `WORLD_SIZE`, ...), as with
torchrun. One that ends ends the others; a signal to the command reaches all of them.
"""

import logging
import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from torch import multiprocessing

from cal_cli.config import command_words
from cal_cli.errors import InputError


@dataclass
class LaunchConfig:
    """The types of `conf/launch/`; what each key means stands there."""

    processes: int | None
    machines: int
    machine: int
    address: str
    port: int | None
    shard: str | None
    offload: bool


SHARDS = ("gradients", "parameters")


def join(launch: LaunchConfig) -> PartialState:
    """Join the processes of the run."""
    if launch.shard is not None:
        # accelerate reads them here, and has tensors on GPUs gathered to the CPU too
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT"}
    return process_state()


def process_state() -> PartialState:
    """This process among those of its run."""
    return PartialState(cpu=not torch.cuda.is_available())


def is_worker() -> bool:
    """Whether this process was started as one of several, by us, torchrun or `accelerate launch`."""
    return "LOCAL_RANK" in os.environ


def wanted_processes(launch: LaunchConfig, elsewhere: bool = False) -> int:
    """Processes on this machine, or on another of which nothing is known.

    Raises:
        InputError: a wrong value.
    """
    processes = max(torch.cuda.device_count(), 1) if launch.processes is None else launch.processes
    if processes < 1 or launch.machines < 1:
        raise InputError(f"launch.processes={processes}, launch.machines={launch.machines}: each must be at least 1")
    gpus = torch.cuda.device_count()
    if gpus and processes > gpus and not elsewhere:
        raise InputError(f"launch.processes={processes}: this machine has {gpus} GPUs; give that many at most")
    if not 0 <= launch.machine < launch.machines:
        raise InputError(f"launch.machine={launch.machine}: allowed are 0 to {launch.machines - 1}")
    if launch.shard is not None:
        if launch.shard not in SHARDS:
            raise InputError(f"launch.shard={launch.shard}: allowed are null, {' and '.join(SHARDS)}")
        if processes * launch.machines < 2:
            raise InputError(
                f"launch.shard={launch.shard}: there is one process, and nothing to divide; give launch.processes=2 or "
                "more, or launch=single"
            )
    elif launch.offload:
        raise InputError("launch.offload=true: needs launch.shard=gradients or parameters")
    if launch.machines > 1 and launch.port is None:
        raise InputError("launch.port is null: give a port that is free on machine 0, as there are several machines")
    return processes


def run_workers(subcommand: str, launch: LaunchConfig, processes: int, folder: Path) -> None:
    """Start the processes of a run and wait for their end.

    Args:
        subcommand: what each of them runs, with the words of this command.
        launch: where they are.
        processes: how many of them are on this machine.
        folder: of the run.

    Raises:
        SystemExit: with the exit code of the first process that failed; 1 where one was killed.
    """
    words = [*command_words(subcommand)[1:], f"hydra.run.dir='{folder}'"]
    environment = {
        "WORLD_SIZE": str(processes * launch.machines),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": str(launch.port or free_port()),
    }
    # before the processes load torch: together they have this machine's cores
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # what it warns of is told below
    first = launch.machine * processes
    context = multiprocessing.start_processes(
        enter, (first, environment, words), nprocs=processes, join=False, start_method="spawn"
    )
    assert context is not None  # as join=False

    def pass_on(number: int, frame: object) -> None:
        for process in context.processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join(timeout=1.0):
            pass
    except multiprocessing.ProcessExitedException as error:
        if error.signal_name is None:
            raise SystemExit(error.exit_code) from error
        print(
            f"{folder}: process {first + error.error_index} was ended by {error.signal_name}, which ends the run. The "
            "same command continues it from its last checkpoint.",
            file=sys.stderr,
        )
        raise SystemExit(1) from error
    except multiprocessing.ProcessRaisedException as error:
        print(error, file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def enter(index: int, first: int, environment: dict[str, str], words: list[str]) -> None:
    """Become one process of the run; it leads a group of its own, so that Ctrl-C reaches it through the command."""
    os.setpgrp()
    os.environ |= environment | {"RANK": str(first + index), "LOCAL_RANK": str(index)}
    sys.argv = ["cal", *words]
    from cal_cli.cli import main

    main()


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
