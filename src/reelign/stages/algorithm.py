"""GRPO variants as data: which steps are stochastic, what a group shares, how loud a step is.

| preset        | stochastic steps                           | a group shares      | weight    | law    | noise |
|---------------|--------------------------------------------|---------------------|-----------|--------|-------|
| reelign       | one a group, from the noisy half           | step, noise, prefix | rectified | flow   | low   |
| flash-grpo    | one a group, from the noisy half           | step                | rectified | linear | white |
| flow-grpo     | all but the last                           | nothing             | 1         | flow   | white |
| dance-grpo    | all but the last                           | noise               | 1         | dance  | white |
| mix-grpo      | a window of 4 that moves towards the data  | steps               | 1         | flow   | white |
| diffusion-nft | none: the loss is on the forward process   | nothing             | 1         | -      | -     |
| reelign-nft   | none                                       | level, noise        | 1         | -      | -     |

Low noise (`band`) is ours: the stochastic step moves the low spatial frequencies only, see `flow.band`. So is what
`reelign-nft` changes in DiffusionNFT: all clips of a group are learned from at the same five levels and with the same
noise, so that what they have in common cancels; which level was drawn is most of the gradient's noise
(`benchmarks/rl_gradients.py`).

Sources: reelign arXiv 2604.25427; Flow-GRPO 2505.05470; DanceGRPO 2505.07818; MixGRPO 2507.21802; DiffusionNFT
2509.16117. Each row is the idea of the work at this recipe's group size and rate, not a copy of its hyperparameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from reelign.errors import ReelignError
from reelign.flow.policy import Denominator
from reelign.flow.step import LawName, NoiseLaw
from reelign.sampling.noise import generator

Preset = Literal["reelign", "flash-grpo", "flow-grpo", "dance-grpo", "mix-grpo", "diffusion-nft", "reelign-nft"]

PRESETS: dict[str, dict[str, Any]] = {
    "reelign": {},
    "flash-grpo": {"law": "linear", "band": 1.0, "shared_noise": False},
    "flow-grpo": {"steps": "all", "band": 1.0, "shared_noise": False, "weight": "none"},
    "dance-grpo": {"steps": "all", "band": 1.0, "weight": "none", "law": "dance", "noise_level": 0.3},
    "mix-grpo": {"steps": "window", "band": 1.0, "shared_noise": False, "weight": "none"},
    "diffusion-nft": {"objective": "nft", "iso_temporal": False, "shared_noise": False, "weight": "none"},
    "reelign-nft": {
        "objective": "nft",
        "shared_noise": False,
        "weight": "none",
        "denominator": "batch",
        "nft_levels": 5,
    },
}
"""What each preset changes in the defaults of `Algorithm`, which are `reelign`."""


class Algorithm(BaseModel):
    """How a policy learns from rewards; the defaults are the preset `reelign`."""

    model_config = ConfigDict(extra="forbid")
    preset: Preset = Field(default="reelign", description="Where the defaults of the other keys come from.")
    objective: Literal["grpo", "nft"] = Field(default="grpo", description="Policy gradient, or DiffusionNFT's loss.")
    law: LawName = Field(default="flow", description="How much noise a stochastic step adds.")
    noise_level: float = Field(default=0.7, gt=0, description="Level of the law: a, eta or tau.")
    band: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Share of the frequencies of height and of width that stochastic steps explore; 1 is white noise.",
    )
    steps: Literal["one", "window", "all"] = Field(default="one", description="Which transitions are stochastic.")
    rollout_steps: int | None = Field(
        default=None,
        ge=2,
        description="Transitions of a rollout, if fewer than in deployment (arXiv 2505.05470, section 4.3).",
    )
    first: float = Field(default=0.0, ge=0, lt=1, description="Share of the grid before the steps that may be trained.")
    last: float = Field(default=0.5, gt=0, le=1, description="Share of the grid at which they end ('one', 'window').")
    window: int = Field(default=4, ge=1, description="Steps in the moving window.")
    window_stays: int = Field(default=8, ge=1, description="Updates before the window moves on by one step.")
    iso_temporal: bool = Field(
        default=True,
        description="Clips of a group are stochastic at the same step; in DiffusionNFT, learned from at the same noise "
        "levels and with the same noise.",
    )
    shared_noise: bool = Field(default=True, description="Clips of a group start from the same noise.")
    weight: Literal["none", "rectified", "guard"] = Field(default="rectified", description="How loud a step is.")
    denominator: Denominator = Field(default="group", description="What an advantage is measured in.")
    advantage_bound: float = Field(default=5.0, gt=0, description="Advantages are clipped to this.")
    clip_range: float = Field(default=1e-3, gt=0, description="Bound of the ratio's distance from 1.")
    kl: float = Field(default=0.0, ge=0, description="Weight of the divergence from the parent.")
    kl_space: Literal["policy", "velocity"] = Field(default="policy", description="What the divergence is taken of.")
    guidance: Literal["both", "none", "rollout"] = Field(
        default="both",
        description="Guidance in all steps, in none, or in all but the trained steps, whose policy is then unguided.",
    )
    nft_levels: int = Field(
        default=1,
        ge=1,
        description="Noise levels, different ones of the grid, at which DiffusionNFT learns from each clip.",
    )
    nft_beta: float = Field(default=1.0, gt=0, description="How far DiffusionNFT mirrors the policy about the old one.")

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_preset(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("preset") in PRESETS:
            return PRESETS[values["preset"]] | values
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> Algorithm:
        if self.first >= self.last:
            raise ValueError(f"first={self.first:g} must be below last={self.last:g}")
        if self.law == "cps" and (self.weight == "guard" or (self.kl and self.kl_space == "velocity")):
            raise ValueError(
                "weight=guard and kl_space=velocity need the normalised log-density of an SDE law, not cps"
            )
        if self.kl and self.objective == "nft":
            raise ValueError("kl belongs to objective=grpo; DiffusionNFT stays near the old policy by itself")
        return self

    @property
    def noise_law(self) -> NoiseLaw:
        """The law of the stochastic steps."""
        return NoiseLaw(self.law, self.noise_level, self.band)

    @property
    def branches(self) -> bool:
        """Whether the clips of a group share everything up to their stochastic step."""
        return self.objective == "grpo" and self.steps == "one" and self.iso_temporal and self.shared_noise

    def candidates(self, steps: int) -> range:
        """Transitions of a grid that may be stochastic: never the last, which ends at data; of two steps the first.

        Raises:
            ReelignError: the grid has one step, which is its last.
        """
        if self.objective == "nft":
            return range(0)
        if steps < 2:
            raise ReelignError(
                f"a policy gradient needs a step that can be stochastic, and the last of a grid cannot: a grid of "
                f"{steps} has none. Raise sampler.steps (or rlhf.algorithm.rollout_steps) to 2 or more, or set "
                "rlhf.algorithm.preset=diffusion-nft."
            )
        low = min(int(self.first * steps), steps - 2)
        high = min(max(int(self.last * steps), low + 1), steps - 1)
        return range(steps - 1) if self.steps == "all" else range(low, high)

    def stochastic_steps(self, steps: int, update: int, keys: Sequence[tuple[int | str, ...]]) -> Tensor:
        """Which transitions of each row are stochastic, bool (len(keys), steps), see `candidates`.

        Args:
            steps: of the grid.
            update: updates done; moves the window.
            keys: one a row; rows with equal keys draw equal steps.

        Raises:
            ReelignError: see `candidates`.
        """
        chosen = torch.zeros(len(keys), steps, dtype=torch.bool)
        may = self.candidates(steps)
        if not may:
            return chosen
        if self.steps == "all":
            chosen[:, may.start : may.stop] = True
        elif self.steps == "window":
            width = min(self.window, len(may))
            start = may.start + (update // self.window_stays) % (len(may) - width + 1)
            chosen[:, start : start + width] = True
        else:
            for row, key in enumerate(keys):
                drawn = torch.randint(may.start, may.stop, (1,), generator=generator("trained step", *key))
                chosen[row, int(drawn)] = True
        return chosen
