"""A rollout of prompt enhancement: rewrites of prompts, what the generator makes of them, and what the rewards say.

Nothing here knows a trainer: prompts go in, tokens and scores come out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from reelign.data.clip import Clip
from reelign.enhancer.enhancer import Manner
from reelign.enhancer.language_model import answer_ids, conversation_ids, finished, similarity
from reelign.enhancer.rewrite import Rewrite
from reelign.errors import ReelignError
from reelign.models.load import load_model
from reelign.rewards.base import RewardSet
from reelign.rewards.recipe import build_rewards
from reelign.sampling.noise import generator
from reelign.stages.asked import build_prompts
from reelign.stages.context import StageContext
from reelign.stages.enhance_recipe import RewardTraining
from reelign.stages.studio import Shot, Studio

STRUCTURE = "structure"
"""Name of the reward for format and length, in [-1, 1]."""


@dataclass(frozen=True)
class Rewritten:
    """The rewrites of one rank in one step.

    Attributes:
        questions, answers: tokens of each.
        learned: whether a row is the model's own; the others are the user's words, which only count for the average.
        scores: of each row, by name of the reward.
        rewrites: what was rendered.
        numbers: for the log.
    """

    questions: list[list[int]]
    answers: list[list[int]]
    learned: list[bool]
    scores: dict[str, list[float]]
    rewrites: list[Rewrite]
    numbers: dict[str, float]


class Rewriting:
    """Asks, renders and scores."""

    def __init__(
        self, language_model: Any, tokenizer: Any, manner: Manner, grpo: RewardTraining, context: StageContext
    ) -> None:
        self.tokenizer, self.manner, self.grpo, self.context = tokenizer, manner, grpo, context
        self.template = manner.build_template()
        self.guard = manner.build_guard(similarity(language_model, tokenizer))
        self.prompts = [listed.text for listed in build_prompts(grpo.prompts)]
        self.rewards: RewardSet = build_rewards(grpo.rewards)
        if any(reward.reward.name == STRUCTURE for reward in self.rewards.rewards):
            raise ReelignError(f"a reward may not be called {STRUCTURE!r}: it is the one for format and length.")
        size = {name: getattr(grpo, name) or getattr(context.battery, name) for name in ("frames", "height", "width")}
        self.size = context.battery.model_copy(update=size)
        self.studio = Studio(
            load_model(grpo.generator or context.parent, dtype=context.dtype, device=context.world.device),
            grpo.sampler or context.sampler,
            self.size,
            context.seed,
            context.folder.parent / "clips",
            context.world,
        )

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each thing that is learned from; a weight of zero is only logged."""
        return self.rewards.weights | {STRUCTURE: self.grpo.structure}

    def rollout(self, language_model: Any, prompts: Sequence[str]) -> Rewritten:
        """One rewrite for each of this rank's rows; a prompt stands in `group_size` rows, over all ranks."""
        started, before = time.perf_counter(), (self.studio.rendered, self.studio.reused)
        first = self.context.world.rank * len(prompts)
        learned = [(first + row) % self.grpo.group_size >= self.grpo.raw for row in range(len(prompts))]
        questions = [conversation_ids(self.tokenizer, self.template.messages(prompt)) for prompt in prompts]
        answers = answer_ids(language_model, self.tokenizer, questions, self.manner.tokens, self.grpo.temperature)
        answers = [
            answer if own else self._raw(prompt) for prompt, answer, own in zip(prompts, answers, learned, strict=True)
        ]
        rewrites, structures = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            said = self.tokenizer.decode(answer, skip_special_tokens=True)
            ended, text = finished(language_model, self.tokenizer, answer), self.template.parse(said)
            rewrites.append(self.judged(prompt, said, ended, text))
            structures.append(self.guard.structure(prompt, text, ended))
        scores = self.scores(rewrites) | {STRUCTURE: structures}
        found = [rewrite for rewrite, own in zip(rewrites, learned, strict=True) if own]
        numbers = {
            "fallback": sum(rewrite.outcome == "fallback" for rewrite in found) / len(found),
            "unchanged": sum(rewrite.outcome == "unchanged" for rewrite in found) / len(found),
            "words": sum(len(rewrite.text.split()) for rewrite in found) / len(found),
            "rendered": float(self.studio.rendered - before[0]),
            "reused": float(self.studio.reused - before[1]),
            "seconds/rollout": time.perf_counter() - started,
            **{f"raw/{name}": _mean(values, [not own for own in learned]) for name, values in scores.items()},
            **{f"reward/{name}": _mean(values, learned) for name, values in scores.items()},
        }
        return Rewritten(questions, answers, learned, scores, rewrites, numbers)

    def judged(self, prompt: str, said: str, ended: bool, text: str | None) -> Rewrite:
        """What would be rendered for an answer. The wrong way asks no guard and takes what it can read."""
        if self.grpo.against == "rewrite":
            return Rewrite(prompt, text or prompt, "rewritten" if text else "fallback", "" if text else "format", said)
        return self.guard.asks(prompt) or self.guard.judge(prompt, said, ended, text)

    def scores(self, rewrites: Sequence[Rewrite]) -> dict[str, list[float]]:
        """Mean score of each rewrite over its clips, by `reward.dimension`."""
        shots = [[Shot(rewrite.text, take) for take in self.takes(rewrite.prompt)] for rewrite in rewrites]
        films = self.studio.film([shot for row in shots for shot in row])
        clips = [
            Clip(films[shot], self.size.fps, rewrite.prompt if self.grpo.against == "original" else rewrite.text, name)
            for number, (rewrite, row) in enumerate(zip(rewrites, shots, strict=True))
            for shot in row
            for name in [f"{number}: {shot.text[:40]}#{shot.take}"]
        ]
        found = self.rewards(clips)
        return {name: found[name].reshape(len(rewrites), -1).mean(1).tolist() for name in self.rewards.weights}

    def takes(self, prompt: str) -> list[int]:
        """The noises of a prompt: the same for all its rewrites, and for ever."""
        order = torch.randperm(self.grpo.noises, generator=generator("takes", self.context.seed, prompt))
        return sorted(order[: self.grpo.clips].tolist())

    def _raw(self, prompt: str) -> list[int]:
        words = self.tokenizer(self.template.answer(prompt), add_special_tokens=False)["input_ids"]
        return [*words, self.tokenizer.eos_token_id]


def _mean(values: Sequence[float], which: Sequence[bool]) -> float:
    chosen = [value for value, own in zip(values, which, strict=True) if own]
    return sum(chosen) / len(chosen) if chosen else float("nan")
