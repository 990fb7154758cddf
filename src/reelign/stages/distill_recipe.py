"""The part of a recipe that says how a model is distilled."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from reelign.models.kv_cache import CausalConfig
from reelign.sampling.sample import SampleConfig
from reelign.stages.asked import PromptSource
from reelign.stages.trainee import TraineeConfig
from reelign.train.optim import OptimConfig
from reelign.train.track import Sink

CAUSAL = ("initialise", "self_forcing")
"""Trainings of a causal student, by their key in a recipe."""
PARTS = ("unguided", "few_step", *CAUSAL)
"""All trainings of a student in their order."""


class StudentConfig(TraineeConfig):
    """What all trainings of a student share."""

    updates: int = Field(default=600, ge=1, description="Optimiser steps of the student.")
    batch_size: int = Field(default=64, ge=1, description="Clips of an update, over all ranks.")
    micro_batch: int = Field(default=32, ge=1, description="Clips that are computed at once on a rank.")
    validate_every: int = Field(default=100, ge=1, description="Updates between validations.")
    patience: int | None = Field(default=4, ge=1, description="Validations without a new best before it stops early.")
    save_every: int = Field(default=100, ge=1, description="Updates between checkpoints.")
    track: list[Sink] = Field(default_factory=list, description="Besides metrics.jsonl: tensorboard, wandb.")


class UnguidedConfig(StudentConfig):
    """Guidance distillation (arXiv 2210.03142): one evaluation of the student for the teacher's two."""

    guidance_scale: float | None = Field(
        default=None, gt=1, description="Guidance that the student takes over; the deployment sampler's by default."
    )


class MatchConfig(StudentConfig):
    """Distribution matching (arXiv 2311.18828, 2405.14867): a critic learns what the student makes, the student
    follows the difference between teacher and critic."""

    critic: OptimConfig = Field(default_factory=OptimConfig, description="The optimiser of the critic.")
    critic_updates: int = Field(default=5, ge=1, description="Updates of the critic for one of the student.")
    level_shift: float = Field(default=5.0, gt=0, description="Shift of the levels at which the scores are compared.")
    alarms_stop: int | None = Field(
        default=3, ge=1, description="Validations in a row that lose motion and bring no new best, and stop it."
    )


class InitialiseConfig(StudentConfig):
    """The first causal weights: regression on trajectories of a teacher, each block at a level of its own."""

    teacher: Literal["few_step", "ode", "consistency"] = Field(
        default="few_step",
        description="Whose trajectories: the few-step student's, the teacher's ODE, or causal consistency along it.",
    )
    trajectories: int = Field(default=1000, ge=1, description="Clips whose way from noise to data is kept on disk.")


class DistillConfig(BaseModel):
    """From many steps to few, and from a whole clip to a stream. Each part may be left out."""

    model_config = ConfigDict(extra="forbid")
    prompts: list[PromptSource] = Field(min_length=1, description="What is asked for; no videos are needed.")
    teacher: str | None = Field(default=None, description="Another, larger model; by default the run's own.")
    guidance_scale: float | None = Field(
        default=None, ge=0, description="Guidance of the teacher's scores; the deployment sampler's by default."
    )
    steps: int = Field(default=4, ge=1, le=50, description="Steps of the student.")
    shift: float = Field(default=5.0, gt=0, description="Shift of the student's grid.")
    unguided: UnguidedConfig | None = Field(default=None, description="A student that needs no guidance.")
    few_step: MatchConfig | None = Field(default=None, description="A student of few steps that sees all frames.")
    causal: CausalConfig | None = Field(default=None, description="How a causal student sees the past.")
    initialise: InitialiseConfig | None = Field(default=None, description="First weights of a causal student.")
    self_forcing: MatchConfig | None = Field(
        default=None, description="Matching on clips that the causal student makes from its own past."
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        whole_clips = self.unguided is not None or self.few_step is not None
        if not whole_clips and self.self_forcing is None:
            raise ValueError("there is nothing to distil: give `unguided`, `few_step` or `self_forcing`")
        if self.causal is None and (self.initialise is not None or self.self_forcing is not None):
            raise ValueError(
                "`initialise` and `self_forcing` train a causal student: give `causal` with its block size"
            )
        if self.causal is not None and self.self_forcing is None:
            raise ValueError("a `causal` student needs `self_forcing`")
        if self.causal is not None and self.causal.memory == "last_step" and self.steps == 1:
            raise ValueError("`causal.memory: last_step` needs `steps: 2` at least: the last of one sees only noise")
        if self.initialise is not None and self.initialise.teacher == "few_step" and not whole_clips:
            raise ValueError("`initialise.teacher: few_step` needs a student of few steps: `few_step` or `unguided`")
        return self

    @property
    def parts(self) -> dict[str, StudentConfig]:
        """The parts that are asked for, in their order."""
        return {part: found for part in PARTS if (found := getattr(self, part)) is not None}

    def guidance(self, deployed: SampleConfig) -> SampleConfig:
        """How the teacher's scores are guided: as it is deployed, if the recipe does not say otherwise."""
        scale = deployed.guidance_scale if self.guidance_scale is None else self.guidance_scale
        return SampleConfig(guidance_scale=scale, negative_prompt=deployed.negative_prompt)

    def absorbed(self, deployed: SampleConfig) -> SampleConfig:
        """The guidance that an unguided student takes over, on its own grid."""
        assert self.unguided is not None
        scale = deployed.guidance_scale if self.unguided.guidance_scale is None else self.unguided.guidance_scale
        guided = {key: getattr(deployed, key) for key in ("guidance_interval", "negative_prompt")}
        return self.sampler.model_copy(update={"guidance_scale": scale, **guided})

    @property
    def sampler(self) -> SampleConfig:
        """How the student is sampled."""
        return SampleConfig(steps=self.steps, shift=self.shift, solver="renoise", guidance_scale=1.0)
