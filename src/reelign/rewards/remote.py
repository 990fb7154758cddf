"""A reward that runs elsewhere: the client of `reelign reward serve`.

Clips are fitted to the needs of the served reward here, so only frames that it looks at travel; scores equal those of
the same reward in this process, to the last bit. A service that is away is a passing failure, which `RewardSet` tries
again; before it does, the client waits for the service to come back and makes sure that it still serves the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import ValidationError

from reelign.data.clip import Clip
from reelign.data.endpoint import EndpointError, exchange
from reelign.rewards.base import Reward, RewardError, Scores
from reelign.rewards.wire import Contract, Failure, ScoreRequest, WireClip

POLL_SECONDS = 0.5
"""Between two looks whether a service is back."""
CONTRACT_SECONDS = 10.0
"""Time limit of asking for the contract, which is never behind a queue."""


class Remote(Reward):
    """The reward that a service offers, with its dimensions, ranges and needs."""

    def __init__(
        self,
        url: str,
        name: str | None = None,
        token_variable: str = "REELIGN_REWARD_TOKEN",
        batch: int = 8,
        seconds: float = 300.0,
        patience: float = 120.0,
    ) -> None:
        """Meet the service.

        Args:
            url: its address, such as http://localhost:8801.
            name: how messages, logs and recipes call it; by default as the service calls its reward.
            token_variable: environment variable that holds the token; none is sent if it is empty.
            batch: clips in one request.
            seconds: time limit of one request, the wait for its turn included.
            patience: seconds that a service may take to come up, at the start and after it was lost.

        Raises:
            EndpointError: no service came up, it refuses the token, or it is none of ours.
        """
        self.url, self.batch, self.seconds, self.patience = url.rstrip("/"), batch, seconds, patience
        self.token_variable = token_variable
        self.contract = self._met()
        self.name = name or self.contract.reward
        self.dimensions, self.needs = self.contract.ranges, self.contract.needs
        self._lost = False

    def score(self, clips: Sequence[Clip]) -> Scores:
        """Ask the service, `batch` clips at a time.

        Raises:
            RewardError: it has no scores, with the clips that the service names; or it is away (a passing failure).
        """
        ids = [clip.id for clip in clips]
        if self._lost:
            self._meet_again(ids)
        parts = [self._scored(clips[start : start + self.batch]) for start in range(0, len(clips), self.batch)]
        return {name: np.concatenate([part[name] for part in parts]) for name in self.dimensions}

    def _scored(self, clips: Sequence[Clip]) -> Scores:
        ids = [clip.id for clip in clips]
        body = ScoreRequest(clips=[WireClip.pack(clip) for clip in clips]).model_dump_json().encode()
        if len(body) > self.contract.limit:
            size, most = (f"{count / 2**20:.1f} MiB" for count in (len(body), self.contract.limit))
            raise RewardError(
                self.name, ids, f"their request has {size} and {self.url} takes {most}: lower `batch` or raise --limit."
            )
        try:
            answer = self._asked("/score", self.seconds, body)
        except EndpointError as error:
            self._lost = error.status is None
            raise self._failure(error, ids) from error
        return self._checked(answer.get("scores", {}), ids)

    def _failure(self, error: EndpointError, ids: list[str]) -> RewardError:
        try:
            told = Failure.model_validate(error.answer["error"])
        except (KeyError, TypeError, ValidationError):
            return RewardError(self.name, ids, str(error), error.passing)
        return RewardError(self.name, told.clips or ids, told.reason, told.passing)

    def _met(self) -> Contract:
        """The contract, as soon as there is a service.

        Raises:
            EndpointError: there is none after `patience`, or it does not answer as one.
        """
        until = time.monotonic() + self.patience
        while True:
            try:
                return Contract.model_validate(self._asked("/contract", CONTRACT_SECONDS))
            except ValidationError as error:
                raise EndpointError(f"{self.url} is no service of `reelign reward serve`: {error}", False) from error
            except EndpointError as error:
                if error.status == 401:
                    reason = f"the service at {self.url} refuses the token in ${self.token_variable}"
                    raise EndpointError(f"{reason}; is it the one that it was started with?", False, 401) from error
                if not error.passing or time.monotonic() >= until:
                    hint = "Is `reelign reward serve` running there?"
                    raise EndpointError(f"no reward service: {error}. {hint}", error.passing) from error
            time.sleep(POLL_SECONDS)

    def _meet_again(self, ids: list[str]) -> None:
        """Wait for a service that was lost, and refuse another one in its place."""
        try:
            found = self._met()
        except EndpointError as error:
            raise RewardError(self.name, ids, str(error), error.passing) from error
        if found != self.contract:
            raise RewardError(
                self.name, ids, f"{self.url} went away and came back with another contract: {found.model_dump_json()}."
            )
        self._lost = False

    def _asked(self, path: str, seconds: float, body: bytes | None = None) -> dict[str, Any]:
        return exchange(self.url + path, body, token=os.environ.get(self.token_variable, ""), seconds=seconds)
