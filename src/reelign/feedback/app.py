"""The page of a study and what stands behind it: `reelign judge serve STUDY`.

A rater opens `/r/TOKEN`. The page asks `/api/next` for the open pair, plays two clips of names that are good for this
one showing, and sends the answer to `/api/vote`; what that answers is on the disk. `door` says who may come in.

No answer names an entrant, a file or a folder: clips are called by a keyed hash of showing and side (HMAC, RFC 2104),
so that the same clip in another showing has another name, and a name leads to a file by way of the database alone.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import sys
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field

from reelign.errors import ReelignError
from reelign.feedback.ballot import Ballot, Choice, Conflict, Place, UnknownShowing
from reelign.feedback.study import Study, open_study
from reelign.feedback.vote import Axis
from reelign.rewards.serve import bound

try:
    import uvicorn
    from fastapi import FastAPI, Request, Security
    from fastapi.concurrency import run_in_threadpool
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import FileResponse, HTMLResponse, Response
    from fastapi.security import HTTPBearer
    from sqlalchemy.exc import SQLAlchemyError
except ImportError as error:
    raise ReelignError("serving a study needs the extra `feedback`: pip install 'reelign[feedback]'.") from error

from reelign.feedback.door import AWAY, POLICY, RATER, STRANGER, Door, Rate, failed

log = logging.getLogger(__name__)
LONGEST = 86_400.0
"""Seconds that a vote may claim to have taken."""
SHARE = 5e-5
"""Seconds that a thread may keep the interpreter while others want it. A vote gives it up at each statement, and
would by Python's 5 ms wait behind whole requests for clips each time."""
HERE = Path(__file__).parent
NAME = re.compile(r"([0-9]{1,9})-(left|right)-([0-9a-f]{32})")


def serve_study(folder: Path, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until interrupted.

    Args:
        folder: the study.
        host: address or name of the interface. Others than this machine's own can be read along by everybody on the
            way, links and votes alike, unless something in front of the server encrypts.
        port: port.
        ready: told the address when the study is about to be served.

    Raises:
        ReelignError: the folder is no study, its database cannot be opened, or the address is taken or unknown.
    """
    with bound(host, port) as listener:
        study = open_study(folder)
        if missing := study.missing():
            raise ReelignError(f"{folder} lacks {len(missing)} of its clips, the first is {missing[0]}.")
        app = application(study)
        name, number = listener.getsockname()[:2]
        ready(f"http://[{name}]:{number}" if ":" in name else f"http://{name}:{number}")
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5
        )
        before = sys.getswitchinterval()
        sys.setswitchinterval(SHARE)
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            sys.setswitchinterval(before)
            study.store.database.close()


class Problem(BaseModel):
    """Why there is no other answer."""

    detail: str


class Progress(BaseModel):
    """How far a rater is."""

    title: str
    done: int
    total: int


class Finished(BaseModel):
    """All is done."""

    showing: None = None
    done: int
    total: int
    can_undo: bool


class Open(BaseModel):
    """The pair that is to be judged."""

    showing: int
    prompt: str
    left: str = Field(description="Address of the left clip.")
    right: str = Field(description="Address of the right clip.")
    fps: float
    frames: int
    axes: list[Axis]
    done: int
    total: int
    can_undo: bool
    votes: dict[Axis, Choice] | None = Field(default=None, description="The choices that were taken back.")


class Answer(BaseModel):
    """What a rater says of a pair."""

    model_config = ConfigDict(extra="forbid")
    showing: int = Field(ge=1, lt=2**31)
    votes: dict[Axis, Choice] = Field(description="Which clip is better, on every axis that is asked.")
    seconds: float = Field(ge=0, allow_inf_nan=False, description="From the moment both clips could be seen.")
    client: str = Field(default="", max_length=200)


class TakeBack(BaseModel):
    """Take back the last answer; `showing` is what is seen instead of it, so that asking twice takes back one."""

    model_config = ConfigDict(extra="forbid")
    showing: int | None = Field(default=None, ge=1, lt=2**31)


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": words}
    for status, words in {
        401: "The token is missing or wrong.",
        413: "The request is too large.",
        422: "The request makes no sense.",
        429: "Too many requests; `Retry-After` says how long to wait.",
        503: "The database does not answer; nothing was changed.",
    }.items()
}
WRITING = PROBLEMS | {
    400: {"model": Problem, "description": "The request is no text."},
    403: {"model": Problem, "description": "The header X-Reelign is missing."},
}
MISPLACED: dict[int | str, dict[str, Any]] = {
    404: {"model": Problem, "description": "The rater's list has no such showing."},
    409: {"model": Problem, "description": "It has another answer already, or was not seen yet; nothing was changed."},
}
Rater = Annotated[Any, Security(HTTPBearer(auto_error=False, description="The token of the rater's link."))]


def application(study: Study, rater: Rate = RATER, stranger: Rate = STRANGER) -> FastAPI:
    """The application of a study; its rates can be changed."""
    app = FastAPI(title="reelign judge", docs_url=None, redoc_url=None, openapi_url=None)
    ballot = Ballot(study.store.database)
    names = Names(study, ballot)
    app.add_middleware(Door, known=study.store.rater, rater=rater, stranger=stranger)
    _say_problems(app)
    axes = list(study.settings.axes)
    told = partial(_told, axes=axes, names=names)

    @app.get("/health", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/r/{token}", include_in_schema=False)
    async def page() -> HTMLResponse:
        return _page(study.settings.title)

    @app.get("/api/info", responses=PROBLEMS)
    async def info(request: Request, _: Rater) -> Progress:
        done, total = await run_in_threadpool(ballot.progress, request.state.rater)
        return Progress(title=study.settings.title, done=done, total=total)

    @app.get("/api/next", responses=PROBLEMS, response_model_exclude_unset=True)
    async def following(request: Request, _: Rater) -> Open | Finished:
        return told(await run_in_threadpool(ballot.place, request.state.rater))

    @app.post(
        "/api/vote", response_model=Open | Finished, responses=WRITING | MISPLACED, response_model_exclude_unset=True
    )
    async def vote(request: Request, _: Rater, answer: Answer) -> Any:
        if missing := [axis for axis in axes if axis not in answer.votes]:
            return failed(422, f"votes: {', '.join(missing)} is missing.")
        if more := [axis for axis in answer.votes if axis not in axes]:
            return failed(422, f"votes: {', '.join(more)} is not asked here.")
        client = "".join(letter for letter in answer.client if letter.isprintable())
        seconds = min(answer.seconds, LONGEST)
        try:
            said = answer.showing, answer.votes, seconds, client
            return told(await run_in_threadpool(ballot.vote, request.state.rater, *said))
        except UnknownShowing as error:
            return failed(404, str(error))
        except Conflict as error:
            return failed(409, str(error))

    @app.post("/api/undo", responses=WRITING, response_model_exclude_unset=True)
    async def undo(request: Request, _: Rater, back: TakeBack) -> Open | Finished:
        return told(await run_in_threadpool(ballot.undo, request.state.rater, back.showing))

    @app.get("/clip/{name}", include_in_schema=False)
    async def clip(name: str) -> Response:
        found = await names.file(name)
        return failed(404, "there is no such clip.") if found is None else ClipResponse(found, name)

    return app


class Names:
    """Names of clips, good for one side of one showing."""

    def __init__(self, study: Study, ballot: Ballot) -> None:
        self.study, self.ballot, self.secret = study, ballot, study.store.fact("secret").encode()
        self._files: dict[int, tuple[str, str]] = {}

    def of(self, showing: int, side: Literal["left", "right"]) -> str:
        """The address of a clip."""
        return f"/clip/{showing}-{side}-{self._mark(f'{showing}-{side}')}"

    async def file(self, name: str) -> Path | None:
        """The file that a name means, if it is one of ours."""
        parts = NAME.fullmatch(name)
        if parts is None or not hmac.compare_digest(parts[3], self._mark(f"{parts[1]}-{parts[2]}")):
            return None
        showing = int(parts[1])
        if showing not in self._files:
            self._files[showing] = await run_in_threadpool(self.ballot.sides, showing)
        return self.study.clip(self._files[showing][parts[2] == "right"])

    def _mark(self, words: str) -> str:
        return hmac.digest(self.secret, words.encode(), "sha256").hex()[:32]


class ClipResponse(FileResponse):
    """A clip or a range of it. Its time and its usual tag would be the same in every showing, so it has others."""

    def __init__(self, file: Path, name: str) -> None:
        headers = {"Cache-Control": "private, max-age=3600", "ETag": f'"{name[-32:]}"', "Last-Modified": ""}
        super().__init__(file, headers=headers, media_type="video/mp4", stat_result=file.stat())

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        """Say the length, and no more."""
        super().set_stat_headers(stat_result)
        del self.headers["last-modified"]

    def _should_use_range(self, http_if_range: str) -> bool:
        return http_if_range == self.headers["etag"]


def _told(place: Place, axes: list[Axis], names: Names) -> Open | Finished:
    """Where a rater is, as the page is told."""
    said: dict[str, Any] = {"done": place.done, "total": place.total, "can_undo": place.done > 0}
    if place.showing is None:
        return Finished(showing=None, **said)
    if place.earlier:
        said["votes"] = place.earlier
    return Open(
        showing=place.showing,
        prompt=place.prompt,
        left=names.of(place.showing, "left"),
        right=names.of(place.showing, "right"),
        fps=place.fps,
        frames=place.frames,
        axes=axes,
        **said,
    )


def _page(title: str) -> HTMLResponse:
    nonce = secrets.token_urlsafe(16)
    own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; media-src 'self'; img-src data:"
    words = _template().render(title=title, css=_text("page.css"), js=_text("page.js"), nonce=nonce)
    return HTMLResponse(words, headers={"Content-Security-Policy": f"{POLICY}; {own}"})


@lru_cache(1)
def _template() -> Any:
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("page.html.j2")


@lru_cache
def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _say_problems(app: FastAPI) -> None:
    """All that can go wrong is said in one form."""

    @app.exception_handler(RequestValidationError)
    async def senseless(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"][1:]) or "the request"
        return failed(422, f"{place}: {first['msg']}.")

    @app.exception_handler(SQLAlchemyError)
    async def database(_: Request, error: SQLAlchemyError) -> Response:
        log.warning("the database failed: %s", error)
        return failed(503, AWAY, {"Retry-After": "2"})

    @app.exception_handler(Exception)
    async def defect(_: Request, _error: Exception) -> Response:
        return failed(500, "something went wrong here; nothing was saved.")
