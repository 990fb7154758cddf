"""A page that plays a stream as it is made: `reelign stream MODEL --serve`.

One stream at a time; another client is told that the server is busy. What travels on `POST /stream` is a sequence of
messages: the size of a header (4 bytes, big-endian), the header (JSON), and the JPEGs whose sizes it lists. The first
message says what comes, a last one why it ends.

A block is made only when the one before it was taken, and no more than `LEAD` seconds before it is due to be seen: a
slow client slows the generator down instead of filling the memory. When the client is gone, the block that is being
made is the last one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelign.errors import ReelignError
from reelign.inference.stream import Pace, StreamSettings
from reelign.models.base import VideoModel
from reelign.rewards.serve import allowed, bound, is_local, read
from reelign.sampling.stream import Chunk, Stream

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise ReelignError("serving a stream needs the extra `serve`: pip install 'reelign[serve]'.") from error

LEAD = 1.0
"""Seconds of video that are made before they are due."""
PATIENCE = 60.0
"""Seconds that a client may take nothing before it counts as gone."""
LIMIT = 2**16
"""Most bytes of a request."""
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'"
)
log = logging.getLogger(__name__)


def serve_stream(
    load: Callable[[], VideoModel],
    settings: StreamSettings,
    prompt: str,
    host: str,
    port: int,
    token: str,
    ready: Callable[[str], None],
) -> None:
    """Serve until interrupted.

    Args:
        load: gives the model; called once it is sure that there is an address to serve it at.
        settings: how streams are made.
        prompt: what the page begins with.
        host: address or name of the interface.
        port: port.
        token: what the page must be told; may be empty on this machine's own addresses only.
        ready: told the name of the model when it is about to be served.

    Raises:
        ReelignError: the address is taken or unknown, or open to others without a token; or the model cannot stream.
    """
    if not token and not is_local(host):
        raise ReelignError(
            f"{host} is open to other machines: put a token into the environment variable that --token-variable names."
        )
    with bound(host, port) as listener:
        model = load()
        settings.prepare(model)
        app = application(model, settings, prompt, token)
        ready(model.name)
        StreamServer(app).run(sockets=[listener])


class StreamServer(uvicorn.Server):
    """uvicorn, but the stream that runs is ended before it waits for connections to close."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=5))
        self.closing: asyncio.Event = app.state.closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the stream, then everything."""
        self.closing.set()
        await super().shutdown(sockets)


class Asked(BaseModel):
    """What a client may ask for."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, max_length=10_000)
    seed: int = Field(default=0, ge=0, lt=2**63)


def application(model: VideoModel, settings: StreamSettings, prompt: str, token: str) -> FastAPI:
    """The page and its stream."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    worker, running = ThreadPoolExecutor(1, "stream"), dict[str, Stream]()
    page = _page(model, settings, prompt, bool(token))
    app.state.closing = closing = asyncio.Event()

    @app.get("/")
    async def show() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": POLICY, "Cache-Control": "no-store"})

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "busy" if running else "ready", "model": model.name}

    @app.post("/stream")
    async def begin(request: Request) -> Response:
        asked = await _asked(request, token)
        if isinstance(asked, Response):
            return asked
        if running:
            return _failed(409, "busy: another stream is running here, and there is one at a time.")
        name, stream = secrets.token_urlsafe(9), settings.begin(model, asked.prompt, asked.seed)
        running[name] = stream
        return _Live(_messages(name, stream, worker), closing, lambda: running.pop(name))

    @app.post("/stream/{name}/prompt")
    async def switch(name: str, request: Request) -> Response:
        asked = await _asked(request, token)
        if isinstance(asked, Response):
            return asked
        if name not in running:
            return _failed(404, "this stream has ended.")
        running[name].switch(asked.prompt)
        return Response(status_code=204)

    return app


class _Live(Response):
    """Messages that are sent as long as somebody takes them and nothing is closing; at the end `ended` is called."""

    def __init__(self, messages: AsyncIterator[bytes], closing: asyncio.Event, ended: Callable[[], Any]) -> None:
        super().__init__(media_type="application/octet-stream", headers={"Cache-Control": "no-store"})
        del self.headers["content-length"]
        self.messages, self.closing, self.ended = messages, closing, ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone, closing = asyncio.create_task(_gone(receive)), asyncio.create_task(self.closing.wait())
        sent = asyncio.create_task(self._send(send))
        try:
            await asyncio.wait({gone, closing, sent}, return_when=asyncio.FIRST_COMPLETED)
            if sent.done():
                sent.result()
            elif closing.done():
                sent.cancel()
                last = {"type": "http.response.body", "body": _packed({"error": "the server was stopped."})}
                await asyncio.wait_for(send(last), 1)
        except TimeoutError:
            log.warning("a client took no frames any more; its stream was stopped.")
        finally:
            for task in (gone, closing, sent):
                task.cancel()
            self.ended()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for message in self.messages:
            part = {"type": "http.response.body", "body": message, "more_body": True}
            await asyncio.wait_for(send(part), PATIENCE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _messages(name: str, stream: Stream, worker: ThreadPoolExecutor) -> AsyncIterator[bytes]:
    """A stream as messages, each made when it is asked for and not long before its time."""
    run, pace = asyncio.get_running_loop().run_in_executor, Pace()
    yield _packed({"stream": name, "fps": stream.fps, "width": stream.width, "height": stream.height})
    origin = 0.0
    while True:
        try:
            chunk = await run(worker, next, stream, None)
            if chunk is None:
                yield _packed({"end": f"The stream has reached its end, {stream.made / stream.fps:.1f} s."})
                return
            pace.add(chunk)
            yield await run(worker, _chunk_message, chunk, stream, pace)
        except (ReelignError, RuntimeError, OSError) as error:  # RuntimeError: torch, out of memory among others
            log.warning("a stream failed: %s", error, exc_info=not isinstance(error, ReelignError))
            yield _packed({"error": f"the generator failed: {str(error).strip().splitlines()[0]}"})
            return
        due, now = stream.made / stream.fps, time.monotonic()
        origin = max(origin, now - due)
        await asyncio.sleep(due - (now - origin) - LEAD)


def _chunk_message(chunk: Chunk, stream: Stream, pace: Pace) -> bytes:
    pictures = [_jpeg(frame) for frame in chunk.frames]
    header = {
        "first": chunk.first,
        "prompt": chunk.prompt,
        "first_frame": pace.first_frame,
        "rate": pace.rate,
        "cache": stream.cache.nbytes,
        "sizes": [len(picture) for picture in pictures],
    }
    return _packed(header, *pictures)


def _jpeg(frame: np.ndarray) -> bytes:
    """A frame (H, W, 3), RGB."""
    return cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]), JPEG)[1].tobytes()


def _packed(header: dict[str, Any], *parts: bytes) -> bytes:
    words = json.dumps(header).encode()
    return b"".join((len(words).to_bytes(4, "big"), words, *parts))


async def _asked(request: Request, token: str) -> Asked | Response:
    """What a request asks for, or why it is refused. Pages of other origins cannot send JSON without being let."""
    if not allowed(request, token):
        return _failed(401, "the token is missing or wrong.")
    if request.headers.get("Content-Type", "") != "application/json":
        return _failed(415, "send JSON.")
    body = await read(request, LIMIT)
    if body is None:
        return _failed(413, f"the request has more than {LIMIT} bytes.")
    try:
        return Asked.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        return _failed(422, f"{'.'.join(map(str, first['loc'])) or 'the request'}: {first['msg']}.")


def _failed(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"error": reason}, status)


def _page(model: VideoModel, settings: StreamSettings, prompt: str, locked: bool) -> str:
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined)
    size = model.native_size
    facts = {
        "model": model.name,
        "prompt": prompt,
        "fps": size.fps,
        "width": settings.width or size.width,
        "height": settings.height or size.height,
        "locked": locked,
    }
    return environment.get_template("stream_page.html.j2").render(facts)
