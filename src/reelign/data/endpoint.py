"""JSON over HTTP, and an OpenAI-compatible vision model behind it. No torch.

`requests` (which diffusers brings along) has what is needed: a time limit for connecting apart from the one for the
answer, proxies, and a token that no redirect carries to another host.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import requests
from pydantic import BaseModel, ConfigDict, Field
from requests.auth import AuthBase

from reelign.errors import ReelignError

CONNECT_SECONDS = 10.0
"""Most time to reach a server; the time for its answer is the caller's to set."""
PASSING = {408, 425, 429}
"""Answers below 500 after which the same request may succeed later."""


class EndpointError(ReelignError):
    """A request has no usable answer.

    Attributes:
        status: of the answer; None when there was none.
        answer: its JSON, or its text.
        passing: whether the same request may succeed later.
    """

    def __init__(self, reason: str, passing: bool, status: int | None = None, answer: Any = None) -> None:
        super().__init__(reason)
        self.passing, self.status, self.answer = passing, status, answer


class ChatEndpoint(BaseModel):
    """Where an OpenAI-compatible vision model answers."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(description="Base address, for example http://localhost:8000/v1.")
    model: str = Field(description="Name of the model at that address.")
    api_key_variable: str = Field(default="OPENAI_API_KEY", description="Environment variable that holds the key.")
    seconds: float = Field(default=60, gt=0, description="Time limit of one request.")


def chat(endpoint: ChatEndpoint, content: Sequence[Mapping[str, Any]], system: str = "", **options: Any) -> str:
    """The words that a model answers to text and pictures, at temperature 0; see `ask`."""
    return ask(endpoint, content, system, **options)[0]


def ask(
    endpoint: ChatEndpoint, content: Sequence[Mapping[str, Any]], system: str = "", **options: Any
) -> tuple[str, bool]:
    """The words that a model answers to text and pictures, at temperature 0, and whether it came to its own end.

    Args:
        endpoint: who is asked.
        content: the parts of the user's message.
        system: instructions that come first, if there are any.
        options: further keys of the request.

    Raises:
        EndpointError: there is no answer, or none with words.
    """
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": list(content)})
    answer = exchange(
        endpoint.url.rstrip("/") + "/chat/completions",
        {"model": endpoint.model, "messages": messages, "temperature": 0} | options,
        token=os.environ.get(endpoint.api_key_variable, ""),
        seconds=endpoint.seconds,
    )
    try:
        choice = answer["choices"][0]
        words, refusal = choice["message"]["content"], choice["message"].get("refusal")
        cut = choice.get("finish_reason") == "length"
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise EndpointError("the answer is no chat completion", True, 200, answer) from error
    if refusal:
        raise EndpointError(f"the model refused: {refusal}", True, 200, answer)
    if not isinstance(words, str) or not words.strip():
        raise EndpointError("the answer holds no words", True, 200, answer)
    return words, not cut


def text_part(words: str) -> dict[str, Any]:
    """Words as a part of a message."""
    return {"type": "text", "text": words}


def picture_part(frame: np.ndarray) -> dict[str, Any]:
    """A frame, uint8 RGB (H, W, 3), as a part of a message: a JPEG of quality 95."""
    _, data = cv2.imencode(".jpg", np.ascontiguousarray(frame[..., ::-1]))
    letters = base64.b64encode(data.tobytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{letters}"}}


def exchange(url: str, body: Any = None, *, token: str = "", seconds: float) -> dict[str, Any]:
    """POST `body` (JSON, or bytes that are JSON already) and return the object of the answer; GET without a body.

    Raises:
        EndpointError: no connection, no answer in time, a status other than 2xx, or an answer that is no JSON object.
    """
    headers = {"Accept": "application/json"} | ({"Content-Type": "application/json"} if body is not None else {})
    how: dict[str, Any] = {"data": body} if isinstance(body, bytes) else {"json": body}
    try:
        answer = requests.request(
            "GET" if body is None else "POST",
            url,
            headers=headers,
            auth=_Bearer(token),
            timeout=(min(CONNECT_SECONDS, seconds), seconds),
            **how,
        )
    except requests.RequestException as error:
        raise _no_answer(url, seconds, error) from error
    except ValueError:  # its message would show the token
        raise EndpointError(f"{url} cannot be asked: the address or the token is not plain text", False) from None
    try:
        found = answer.json()
    except ValueError:
        found = answer.text
    if not answer.ok:
        said = " ".join(str(found).split())[:300]
        passing = answer.status_code in PASSING or answer.status_code >= 500
        raise EndpointError(f"{url} answers {answer.status_code}: {said}", passing, answer.status_code, found)
    if not isinstance(found, dict):
        raise EndpointError(f"{url} answers with something that is no JSON object", True, answer.status_code, found)
    return found


def _no_answer(url: str, seconds: float, error: requests.RequestException) -> EndpointError:
    if isinstance(error, requests.Timeout) and not isinstance(error, requests.ConnectTimeout):
        return EndpointError(f"{url} gave no answer within {seconds:g} s", True)
    cause: BaseException = error
    while below := cause.__cause__ or cause.__context__:
        cause = below  # the layers of the library say the same in more and more words
    said = getattr(cause, "strerror", None) or str(cause)
    away = isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError)
    return EndpointError(f"{url}: {said}", away and not isinstance(error, requests.exceptions.SSLError))


class _Bearer(AuthBase):
    """The token, and nothing else: without this, requests would look for a password in ~/.netrc."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.token:
            request.headers["Authorization"] = f"Bearer {self.token.strip()}"
        return request
