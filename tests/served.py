"""A command that serves, from its first answer on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forks import Fork, free_port
from reelign.data.endpoint import EndpointError, exchange


@contextmanager
def served(folder: Path, *arguments: str | Path) -> Iterator[tuple[Fork, int]]:
    """`reelign ARGUMENTS --port PORT` and its port; killed at the end if it is still there."""
    port = free_port()
    fork, until = Fork(folder, *arguments, "--port", str(port)), time.monotonic() + 120
    try:
        while True:
            try:
                exchange(f"http://127.0.0.1:{port}/health", seconds=5)
                break
            except EndpointError:
                assert time.monotonic() < until, fork.said
                time.sleep(0.05)
        yield fork, port
    finally:
        with suppress(ValueError):  # it has ended
            fork.signal_when(lambda: True, signal.SIGKILL)
