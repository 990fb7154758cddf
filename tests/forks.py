"""`reelign ARGUMENTS`, a script or a function in a process of its own that starts at once: the fork of one that has
imported everything.

Signals, exit status and what is said are as on the command line, and several ranks find each other as torchrun's do;
only the seconds of importing are saved. What the command line imports, and how it starts, is tested with real commands
(`command.command`, `command.torchrun`).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["inherited"])


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
    return _run([{}], arguments, _reelign, extra)


def run_ranks(ranks: int, arguments: Sequence[str | Path], **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `reelign ARGUMENTS` on several ranks of this machine. When one fails the others are ended, as by torchrun."""
    return _run(places(ranks), arguments, _reelign, extra)


def run_script(path: Path, *arguments: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `python PATH ARGUMENTS` to its end."""
    return _run([{}], [path, *arguments], _script, extra)


def call_on_ranks(ranks: int, function: Callable[..., None], *arguments: object) -> None:
    """Call a module's function on several ranks of this machine; all must come to their end."""
    done = _run(places(ranks), arguments, function, {"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0, done.stderr


def places(ranks: int) -> list[dict[str, str]]:
    """What torchrun tells each of several ranks."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def _run(
    places: Sequence[Mapping[str, str]],
    arguments: Sequence[object],
    function: Callable[..., None],
    extra: dict[str, str],
) -> subprocess.CompletedProcess[str]:
    """A process for each place, until all have ended or one has failed."""
    shown = [*map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        logs = [(Path(folder) / f"out-{rank}", Path(folder) / f"err-{rank}") for rank in range(len(places))]
        processes = [
            _start(function, arguments, environment(**place, **extra), out, err)
            for place, (out, err) in zip(places, logs, strict=True)
        ]
        until = time.monotonic() + 300
        while any(process.is_alive() for process in processes) and time.monotonic() < until:
            if any(process.exitcode for process in processes):
                break
            connection.wait([process.sentinel for process in processes if process.is_alive()], timeout=1)
        late = time.monotonic() >= until
        failed = next((process.exitcode for process in processes if process.exitcode), 0)  # not one that is ended here
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join(30)
                process.kill()
            process.join()
        if late:
            raise subprocess.TimeoutExpired(shown, 300)
        said = ("".join(path.read_text() for path in kind if path.exists()) for kind in zip(*logs, strict=True))
        return subprocess.CompletedProcess(shown, failed, *said)


class Fork:
    """A running command; `said` is what it has printed so far."""

    def __init__(self, folder: Path, *arguments: str | Path, **extra: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / f"said-{time.monotonic_ns()}.txt"
        self._process = _start(_reelign, arguments, environment(CUDA_VISIBLE_DEVICES="", **extra), self._log, self._log)

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
        signal_when(self._process, ready, number, lambda: self.said[-3000:])

    def kill_when(self, ready: Callable[[], bool]) -> None:
        """kill -9 as soon as `ready`: in the middle of the work, or when all has been done that a test looks at."""
        self.signal_when(ready, signal.SIGKILL)
        self.end(-signal.SIGKILL)


def signal_when(
    process: BaseProcess, ready: Callable[[], bool], number: signal.Signals, said: Callable[[], str] = str
) -> None:
    """Send a signal to a fork as soon as `ready`; if it ends before that, the test fails with what it `said`."""
    until = time.monotonic() + 200
    while not ready():
        assert process.is_alive(), said()
        assert time.monotonic() < until, said()
        time.sleep(0.005)
    os.kill(process.pid or 0, number)


def started(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A fork that runs `target(*arguments)`. The first one starts the server, in this environment."""
    process = SERVER.Process(target=target, args=arguments)
    own = environment(CUDA_VISIBLE_DEVICES="", PYTHONPATH=str(Path(__file__).parent))
    with mock.patch.dict(os.environ, own):
        process.start()
    return process


def _start(
    function: Callable[..., None], arguments: Sequence[object], variables: Mapping[str, str], out: Path, err: Path
) -> BaseProcess:
    return started(_entered, function, [*arguments], dict(variables), str(Path.cwd()), str(out), str(err))


def _entered(
    function: Callable[..., None], arguments: list[object], variables: dict[str, str], folder: str, out: str, err: str
) -> None:
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests themselves run in the background
    sys.path[:0] = [place for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    for number, path in ((1, out), (2, err)):
        with Path(path).open("ab") as file:
            os.dup2(file.fileno(), number)
    function(*arguments)


def _reelign(*arguments: str | Path) -> None:
    sys.argv = ["reelign", *map(str, arguments)]
    from reelign.cli import main

    main()


def _script(path: Path, *arguments: str | Path) -> None:
    sys.argv = [str(path), *map(str, arguments)]
    sys.path.insert(0, str(path.parent))
    runpy.run_path(str(path), run_name="__main__")
