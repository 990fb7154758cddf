"""A command that serves, from its first answer on."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from forks import Fork
from reelign.data.endpoint import EndpointError, exchange


@contextmanager
def served(folder: Path, *arguments: str | Path) -> Iterator[tuple[Fork, int]]:
    """`reelign ARGUMENTS --port PORT` and its port; killed at the end if it is still there."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
