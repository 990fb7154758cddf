"""A pool of processes in which one task can hang or crash without taking anything else along.

Some damaged files make a decoder hang or die. Each worker has a pipe and a deadline; a worker that misses it is
killed and replaced, and its task is answered with a failure.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any


@dataclass(frozen=True)
class Failure:
    """A task that gave no result: a sentence that says why."""

    reason: str


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    task: int | None = None
    deadline: float = 0.0


def run_tasks(
    function: Callable[..., Any], tasks: Sequence[tuple[Any, ...]], workers: int, seconds: float
) -> Iterator[tuple[int, Any]]:
    """Results as (index of the task, result or `Failure`), in the order in which they finish.

    Args:
        function: a module-level function; called as `function(*task)` in a fresh process.
        tasks: the arguments.
        workers: processes at once.
        seconds: time limit of one task.
    """
    context = multiprocessing.get_context("spawn")
    waiting = list(range(len(tasks)))[::-1]
    pool = [_start(context, function) for _ in range(min(workers, len(tasks)))]
    try:
        while waiting or any(worker.task is not None for worker in pool):
            for worker in pool:
                if worker.task is None and waiting:
                    worker.task = waiting.pop()
                    worker.deadline = time.monotonic() + seconds
                    with suppress(OSError):  # A worker that died while idle is met again in `_receive`.
                        worker.pipe.send(tasks[worker.task])
            busy = [worker for worker in pool if worker.task is not None]
            soonest = min(worker.deadline for worker in busy) - time.monotonic()
            ready = set(wait([worker.pipe for worker in busy], timeout=max(0.0, soonest)))
            for worker in busy:
                late = time.monotonic() > worker.deadline
                if worker.pipe not in ready and not late:
                    continue
                index = worker.task
                assert index is not None
                result = (
                    _receive(worker) if worker.pipe in ready else Failure(f"took longer than {seconds:g} s to decode")
                )
                worker.task = None
                if isinstance(result, Failure):
                    pool[pool.index(worker)] = _replace(context, function, worker)
                yield index, result
    finally:
        for worker in pool:
            worker.process.kill()
            worker.process.join()


def _start(context: Any, function: Callable[..., Any]) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(function, theirs), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _replace(context: Any, function: Callable[..., Any], worker: _Worker) -> _Worker:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()
    return _start(context, function)


def _receive(worker: _Worker) -> Any:
    try:
        return worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(timeout=5)
        return Failure(f"the decoder crashed (exit code {worker.process.exitcode})")


def _serve(function: Callable[..., Any], pipe: Connection) -> None:
    """The loop of a worker: it ends when the pipe closes."""
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            return
        pipe.send(function(*task))
