"""A reward as an HTTP service; `reelign.rewards.wire` says what travels, `reelign.rewards.remote` is its client.

One worker thread scores, one request after another. A request whose client has gone before its turn is dropped.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from pydantic import ValidationError

from reelign.data.clip import Clip
from reelign.errors import ReelignError
from reelign.rewards.base import Needs, Reward, RewardError
from reelign.rewards.wire import Contract, Failure, ScoreRequest

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise ReelignError("serving needs the extra `serve`: pip install 'reelign[serve]'.") from error


def serve_reward(
    build: Callable[[], Reward], host: str, port: int, token: str, limit: int, ready: Callable[[str], None]
) -> None:
    """Serve until interrupted.

    Args:
        build: makes the reward; called once it is sure that there is an address to serve it at.
        host: address or name of the interface.
        port: port.
        token: what clients must bring; may be empty on this machine's own addresses only.
        limit: most bytes of a request.
        ready: told the name of the reward when it is about to be served.

    Raises:
        ReelignError: the address is taken or unknown, or open to others without a token.
    """
    if not token and not is_local(host):
        raise ReelignError(
            f"{host} is open to other machines: put a token into the environment variable that --token-variable names."
        )
    with bound(host, port) as listener:
        reward = build()
        ready(reward.name)
        settings = uvicorn.Config(application(reward, token, limit), log_level="warning", access_log=False)
        uvicorn.Server(settings).run(sockets=[listener])


def is_local(host: str) -> bool:
    """Whether an address can be reached from this machine only."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host: str, port: int) -> socket.socket:
    """A socket that holds the address but does not listen yet: clients are refused, not left waiting, until then."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise ReelignError(f"cannot serve at {host}:{port}: {error}. Choose another --host or --port.") from error
    return listener


def application(reward: Reward, token: str, limit: int) -> FastAPI:
    """The service of a reward."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    served, contract = _Fitted(reward), Contract.of(reward, limit)
    worker, turn = ThreadPoolExecutor(1, "reward"), asyncio.Lock()

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready", "reward": reward.name}

    @app.get("/contract")
    async def tell(request: Request) -> JSONResponse:
        return JSONResponse(contract.model_dump()) if allowed(request, token) else _refused()

    @app.post("/score")
    async def score(request: Request) -> JSONResponse:
        if not allowed(request, token):
            return _refused()
        body = await read(request, limit)
        if body is None:
            return _failed(413, Failure(reason=f"the request has more than {limit} bytes; lower `batch`."))
        async with turn:
            if await request.is_disconnected():
                return _failed(503, Failure(reason="the client has gone.", passing=True))
            return await asyncio.get_running_loop().run_in_executor(worker, answer, served, body)

    return app


def allowed(request: Request, token: str) -> bool:
    """Whether a request brings the token; the comparison takes as long for every wrong one."""
    brought = request.headers.get("Authorization", "").encode("latin-1")
    return not token or hmac.compare_digest(brought, f"Bearer {token}".encode())


async def read(request: Request, limit: int) -> bytes | None:
    """The body; None, and no more is read, when it is longer than `limit`."""
    announced = request.headers.get("Content-Length", "0")
    if announced.isdecimal() and int(announced) > limit:
        return None
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > limit:
            return None
    return bytes(body)


def answer(reward: Reward, body: bytes) -> JSONResponse:
    """Scores of the clips of a request, or why there are none."""
    try:
        clips = [clip.unpack() for clip in ScoreRequest.model_validate_json(body).clips]
    except ValidationError as error:
        return _failed(400, Failure(reason=f"the request is no list of clips: {error}"))
    except ValueError as error:
        return _failed(400, Failure(reason=f"the request cannot be read: {error}"))
    try:
        scores = reward(clips)
    except RewardError as error:
        failure = Failure(reason=error.reason, clips=list(error.clips), passing=error.passing)
        return _failed(503 if error.passing else 422, failure)
    return JSONResponse({"scores": {name: values.tolist() for name, values in scores.items()}})


class _Fitted(Reward):
    """The reward, for clips that a client has fitted already: fitting twice may choose other frames."""

    needs = Needs()

    def __init__(self, reward: Reward) -> None:
        self.name, self.dimensions, self._score = reward.name, reward.dimensions, reward.score

    def score(self, clips: Sequence[Clip]) -> Mapping[str, Sequence[float] | np.ndarray]:
        return self._score(clips)


def _refused() -> JSONResponse:
    return _failed(401, Failure(reason="the token is missing or wrong."))


def _failed(status: int, failure: Failure) -> JSONResponse:
    return JSONResponse({"error": failure.model_dump()}, status)
