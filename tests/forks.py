"""`reelign ARGUMENTS` in a process of its own that starts at once: the fork of one that has imported everything.

Signals, exit status and what is said are as on the command line, and several ranks find each other as torchrun's do;
only the seconds of importing are saved. What the command line imports, and how it starts, is tested with real commands
(`command.command`, `command.torchrun`).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["reelign.pipeline", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer"])


def environment(**extra: str) -> dict[str, str]:
    """One thread a process, no network: what is not on disk is an error."""
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"} | extra


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(arguments: Sequence[str | Path], **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `reelign ARGUMENTS` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = _start(arguments, environment(**extra), out, err)
        process.join(300)
        if process.is_alive():
            process.kill()
            raise subprocess.TimeoutExpired([*map(str, arguments)], 300)
        said = (path.read_text() if path.exists() else "" for path in (out, err))
        return subprocess.CompletedProcess([*map(str, arguments)], process.exitcode or 0, *said)


def run_ranks(ranks: int, arguments: Sequence[str | Path], **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `reelign ARGUMENTS` on several ranks of this machine. When one fails the others are ended, as by torchrun."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as folder:
        places = [(Path(folder) / f"out-{rank}", Path(folder) / f"err-{rank}") for rank in range(ranks)]
        processes = [
            _start(arguments, environment(**meeting, **sizes, RANK=str(rank), LOCAL_RANK=str(rank), **extra), out, err)
            for rank, (out, err) in enumerate(places)
        ]
        until = time.monotonic() + 300
        while any(process.is_alive() for process in processes) and time.monotonic() < until:
            if any(process.exitcode for process in processes):
                break
            time.sleep(0.02)
        late = time.monotonic() >= until
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join(30)
                process.kill()
            process.join()
        if late:
            raise subprocess.TimeoutExpired([*map(str, arguments)], 300)
        said = ("".join(path.read_text() for path in kind if path.exists()) for kind in zip(*places, strict=True))
        failed = int(any(process.exitcode for process in processes))
        return subprocess.CompletedProcess([*map(str, arguments)], failed, *said)


class Fork:
    """A running command; `said` is what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str | Path, **extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"said-{time.monotonic_ns()}.txt"
        self._process = _start(arguments, environment(CUDA_VISIBLE_DEVICES="", **extra), self._log, self._log)

    @property
    def said(self) -> str:
        return " ".join(self._log.read_text().split()) if self._log.exists() else ""

    @property
    def ended(self) -> bool:
        return not self._process.is_alive()

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self._process.kill()
        self._process.join()

    def end(self, wanted: int) -> str:
        """Wait for the end, which must have this exit status; what was said."""
        self._process.join(300)
        code, said = self._process.exitcode, self.said
        self._process.close()
        assert code == wanted, f"ended with {code}: {said[-3000:]}"
        return said

    def signal_when(self, ready: Callable[[], bool], number: signal.Signals) -> None:
        """Send a signal as soon as `ready`."""
        until = time.monotonic() + 200
        while not ready():
            assert self._process.is_alive(), self.said[-3000:]
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(self._process.pid or 0, number)


def _start(arguments: Sequence[str | Path], variables: Mapping[str, str], out: Path, err: Path) -> BaseProcess:
    work = ([*map(str, arguments)], dict(variables), str(Path.cwd()), str(out), str(err))
    process = SERVER.Process(target=_command, args=work)
    with mock.patch.dict(os.environ, environment(CUDA_VISIBLE_DEVICES="")):  # of the server, when this starts it
        process.start()
    return process


def _command(arguments: list[str], variables: dict[str, str], folder: str, out: str, err: str) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves run in the background
    sys.path[:0] = [place for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    sys.argv = ["reelign", *arguments]
    for number, path in ((1, out), (2, err)):
        with Path(path).open("ab") as file:
            os.dup2(file.fileno(), number)
    from reelign.cli import main

    main()
