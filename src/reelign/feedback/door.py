"""Who may come in: tokens, rates, sizes, and the headers that every answer bears.

A rater is known by the token in `Authorization: Bearer ..`, which the page takes from its own address. Browsers never
send that header by themselves, as they do cookies, so a foreign page cannot act for a rater (no CSRF). Writing asks for
the header `X-Reelign: 1` besides: a foreign page could send it only after asking this server, which never agrees.

Wrong tokens and wrong names of clips spend from a small account of the client's address, right ones from the rater's.
"""

from __future__ import annotations

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from reelign.feedback.study import token_hash
from reelign.rewards.serve import read

log = logging.getLogger(__name__)
LIMIT = 2**14
"""Most bytes of a request."""
POLICY = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
    "Cache-Control": "no-store",
}
PAGE, API, CLIP = "/r/", "/api/", "/clip/"
BAD_LINK = "This link is not valid. Open the link exactly as you were sent it, or ask for a new one."
AWAY = "The votes cannot be reached just now."
BUSY = "Too many requests from here; please wait a moment."


@dataclass(frozen=True)
class Rate:
    """So many requests at once, and so many a second in the long run."""

    burst: float
    per_second: float


RATER = Rate(60, 20)
"""Far more than a person's hand, far less than what would keep others waiting."""
STRANGER = Rate(20, 0.5)


class Accounts:
    """Token buckets, one a key. Those that are longest unused are forgotten first."""

    def __init__(self, rate: Rate, most: int = 10_000, now: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.most, self.now = rate, most, now
        self._left: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def wait(self, key: Hashable, price: float = 1.0) -> float:
        """Pay; 0 when that was possible, else the seconds until it is, and nothing was paid."""
        now = self.now()
        left, since = self._left.pop(key, (self.rate.burst, now))
        left = min(self.rate.burst, left + (now - since) * self.rate.per_second)
        paid = left >= 1.0
        self._left[key] = (left - price if paid else left, now)
        if len(self._left) > self.most:
            self._left.popitem(last=False)
        return 0.0 if paid else (1.0 - left) / self.rate.per_second


class Door:
    """The middleware around the application of a study.

    Args:
        app: what is behind the door.
        known: the rater whose link holds the token with a hash, or None; may take its time.
        rater: rate of one rater.
        stranger: rate of wrong tokens and names from one address.
    """

    def __init__(
        self, app: ASGIApp, known: Callable[[str], int | None], rater: Rate = RATER, stranger: Rate = STRANGER
    ) -> None:
        self.app, self.known = app, known
        self.raters, self.strangers = Accounts(rater), Accounts(stranger)
        self._known: dict[str, int] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request in, or say why not."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        request, send = Request(scope, receive), _with_headers(send)
        refused = await self._refusal(request)
        if refused is not None:
            return await refused(scope, receive, send)
        try:
            body = await read(request, LIMIT)
        except ClientDisconnect:
            return None
        if body is None:
            return await failed(413, f"the request has more than {LIMIT} bytes.")(scope, receive, send)
        return await self.app(scope, _again(body, receive), self._watched(request, send))

    async def _refusal(self, request: Request) -> Response | None:
        path = request.scope["path"]  # and not `request.url`, into which the client's Host header goes
        if path.startswith(PAGE):
            return await self._admit(request, path.removeprefix(PAGE))
        if not path.startswith(API):
            return None
        if request.method not in ("GET", "HEAD", "OPTIONS") and request.headers.get("X-Reelign") != "1":
            return failed(403, "the header X-Reelign: 1 is missing.")
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return await self._admit(request, token.strip() if scheme.lower() == "bearer" else "")

    async def _admit(self, request: Request, token: str) -> Response | None:
        """Whom a token belongs to goes into the request's state."""
        key, address = token_hash(token), _address(request)
        rater = self._known.get(key)
        if rater is None:
            if wait := self.strangers.wait(address, price=0):
                return _wait(wait)
            try:
                rater = await run_in_threadpool(self.known, key)
            except SQLAlchemyError as error:
                log.warning("the database failed: %s", error)
                return failed(503, AWAY, {"Retry-After": "2"})
            if rater is None:
                self.strangers.wait(address)
                return _unknown(request)
            self._known[key] = rater
        if wait := self.raters.wait(rater):
            return _wait(wait)
        request.state.rater = rater
        return None

    def _watched(self, request: Request, send: Send) -> Send:
        """Names of clips that were guessed count as wrong tokens do."""
        if not request.scope["path"].startswith(CLIP):
            return send

        async def watch(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 404:
                self.strangers.wait(_address(request))
            await send(message)

        return watch


def failed(status: int, reason: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An answer that says what is wrong."""
    return JSONResponse({"detail": reason}, status, headers)


def _unknown(request: Request) -> Response:
    if not request.scope["path"].startswith(PAGE):
        return failed(401, BAD_LINK, {"WWW-Authenticate": "Bearer"})
    words = f'<!doctype html><html lang="en"><title>Link not valid</title><p>{BAD_LINK}</p></html>'
    return HTMLResponse(words, 401, {"WWW-Authenticate": "Bearer"})


def _wait(seconds: float) -> Response:
    return failed(429, BUSY, {"Retry-After": str(max(1, math.ceil(seconds)))})


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


def _again(body: bytes, receive: Receive) -> Receive:
    """What hands out a body that was read already, and then what comes after it."""
    parts = [{"type": "http.request", "body": body, "more_body": False}]

    async def take() -> Message:
        return parts.pop() if parts else await receive()

    return take


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return with_headers
