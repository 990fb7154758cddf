"""A causal miniature, and its stream server in a thread of the test's own process."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from reelign.inference.stream import StreamSettings
from reelign.inference.stream_server import StreamServer, application
from reelign.models.base import VideoModel
from reelign.models.kv_cache import CausalConfig
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig
from reelign.sampling.stream import Stream

FEW = SampleConfig(steps=2, shift=3.0, solver="renoise", guidance_scale=1.0)
RED, BLUE = "a large red circle moving left", "a small blue square that stands still"


def causal_miniature() -> VideoModel:
    """Its weights were not trained for it, which no test needs."""
    model = load_model("miniature", device="cpu")
    model.make_causal(CausalConfig(block=1, window=4, sinks=1))
    model.own_sampler = FEW.model_dump(mode="json")
    return model


def saved_causal_miniature(folder: Path) -> Path:
    causal_miniature().save(folder)
    return folder


class Noted(StreamSettings):
    """Settings that remember the streams that they began, and may slow them down or let them fail."""

    begun: list[Any] = Field(default_factory=list)
    block_seconds: float = 0.0
    fail_after: int | None = None

    def begin(self, model: VideoModel, prompt: str, seed: int) -> Stream:
        stream = super().begin(model, prompt, seed)
        self.begun.append(stream)
        make = stream._noise.take

        def take(frames: int) -> Any:
            time.sleep(self.block_seconds)
            if self.fail_after is not None and stream.made >= self.fail_after:
                raise RuntimeError("out of memory\nand a long story")
            return make(frames)

        stream._noise.take = take  # type: ignore[method-assign]
        return stream


@dataclass
class Served:
    """A running server."""

    port: int
    settings: Noted
    token: str = ""
    connections: list[http.client.HTTPConnection] = field(default_factory=list)

    def ask(self, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.connections.append(connection)
        sent = {"Content-Type": "application/json", "Authorization": f"Bearer {self.token}"} | headers
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, content, sent)
        return connection.getresponse()

    @property
    def status(self) -> str:
        return json.loads(self.ask("/health").read())["status"]

    def wait_for(self, status: str) -> None:
        until = time.monotonic() + 60
        while self.status != status:
            assert time.monotonic() < until
            time.sleep(0.02)


def message(answer: http.client.HTTPResponse) -> tuple[dict[str, Any], list[bytes]]:
    """The next message of a stream: its header and its pictures."""
    head = json.loads(answer.read(int.from_bytes(answer.read(4), "big")))
    return head, [answer.read(size) for size in head.get("sizes", [])]


@contextmanager
def served(model: VideoModel, token: str = "", prompt: str = RED, **settings: Any) -> Iterator[Served]:
    noted = Noted(**settings)
    server = StreamServer(application(model, noted, prompt, token))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        one = Served(listener.getsockname()[1], noted, token)
        while not server.started:
            time.sleep(0.01)
        try:
            yield one
        finally:
            for connection in one.connections:
                connection.close()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
