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
from reelign.stages.asked import build_prompts, drawn
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
    """Asks, renders and scores.

    Attributes:
        prompts: of all steps, in the order in which they are learned from.
    """

    def __init__(
        self, language_model: Any, tokenizer: Any, manner: Manner, grpo: RewardTraining, context: StageContext
    ) -> None:
        self.tokenizer, self.manner, self.grpo, self.context = tokenizer, manner, grpo, context
        self.template = manner.build_template()
        self.guard = manner.build_guard(similarity(language_model, tokenizer))
        positions = range(grpo.steps * grpo.prompts_per_step)
        self.prompts = [listed.text for listed in drawn(build_prompts(grpo.prompts), positions, context.seed)]
        self.rewards: RewardSet = build_rewards(grpo.rewards)
        if any(reward.reward.name == STRUCTURE for reward in self.rewards.rewards):
            raise ReelignError(f"a reward may not be called {STRUCTURE!r}: it is the one for format and length.")
        self.size = grpo.size(context.battery)
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
        for prompt, answer, own in zip(prompts, answers, learned, strict=True):
            said = self.tokenizer.decode(answer, skip_special_tokens=True)
            ended, text = finished(language_model, self.tokenizer, answer), self.template.parse(said) if own else prompt
            rewrites.append(self.judged(prompt, said, ended, text) if own else Rewrite(prompt, prompt, "unchanged"))
            structures.append(self.guard.structure(prompt, text, ended))
        scores = self.scores(rewrites) | {STRUCTURE: structures}
        raw = [not own for own in learned]
        numbers = {
            "fallback": self._mean([rewrite.outcome == "fallback" for rewrite in rewrites], learned),
            "unchanged": self._mean([rewrite.outcome == "unchanged" for rewrite in rewrites], learned),
            "words": self._mean([len(rewrite.text.split()) for rewrite in rewrites], learned),
            "rendered": float(self.studio.rendered - before[0]),
            "reused": float(self.studio.reused - before[1]),
            "seconds/rollout": time.perf_counter() - started,
            **{f"raw/{name}": self._mean(values, raw) for name, values in scores.items() if self.grpo.raw},
            **{f"reward/{name}": self._mean(values, learned) for name, values in scores.items()},
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

    def _mean(self, values: Sequence[float], which: Sequence[bool]) -> float:
        """Over the chosen rows of all ranks."""
        chosen = [value for value, is_chosen in zip(values, which, strict=True) if is_chosen]
        sums = torch.tensor([sum(chosen), len(chosen)], dtype=torch.float64, device=self.context.world.device)
        total, count = self.context.world.sum(sums).tolist()
        return total / count
