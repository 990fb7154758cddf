"""`reelign ARGUMENTS` in a process of its own that starts at once: the fork of one that has imported everything.

For tests that stop a run and start it again. Signals, exit status and what is said are as on the command line.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from command import environment

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["reelign.pipeline", "trl.trainer.sft_trainer", "trl.trainer.grpo_trainer"])


class Fork:
    """A running command; `said` is what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str | Path, **extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"said-{time.monotonic_ns()}.txt"
        self._process = SERVER.Process(target=_command, args=([*map(str, arguments)], str(self._log), extra))
        with mock.patch.dict(os.environ, environment(CUDA_VISIBLE_DEVICES="")):
            self._process.start()

    @property
    def said(self) -> str:
        return " ".join(self._log.read_text().split()) if self._log.exists() else ""

    def end(self, wanted: int) -> str:
        """Wait for the end, which must have this exit status; what was said."""
        self._process.join(300)
        code, said = self._process.exitcode, self.said
        self._process.close()
        assert code == wanted, said[-3000:]
        return said

    def signal_when(self, ready: Callable[[], bool], number: signal.Signals) -> None:
        """Send a signal as soon as `ready`."""
        until = time.monotonic() + 200
        while not ready():
            assert self._process.is_alive(), self.said[-3000:]
            assert time.monotonic() < until
            time.sleep(0.005)
        os.kill(self._process.pid or 0, number)


def _command(arguments: list[str], log: str, extra: dict[str, str]) -> None:
    os.environ.update(extra)
    sys.path[:0] = extra.get("PYTHONPATH", "").split(os.pathsep)
    sys.argv = ["reelign", *arguments]
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from reelign.cli import main

    main()
