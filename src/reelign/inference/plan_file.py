"""`plan.yaml`: what a plan promises, for which model and device, and everything that was tried on the way."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Self

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.inference.acceleration import Acceleration, accelerate
from reelign.inference.trial import Trial
from reelign.models.base import VideoModel
from reelign.models.load import generator_name, weights_identity
from reelign.sampling.sample import SampleConfig


class Target(BaseModel):
    """What is asked of a plan."""

    model_config = ConfigDict(extra="forbid")
    budget: float | None = Field(default=None, gt=0, description="Seconds a clip, at most.")
    speedup: float | None = Field(default=None, gt=1, description="Times faster than without a plan, at least.")
    min_gsb: float = Field(default=-0.05, ge=-1, le=1, description="GSB against the plain model, at least.")
    min_psnr: float | None = Field(default=None, gt=0, description="dB to the plain model's frames, at least.")

    @model_validator(mode="after")
    def _one_kind_of_speed(self) -> Self:
        if (self.budget is None) == (self.speedup is None):
            raise ValueError("give --budget, the seconds a clip may take, or --speedup, how much faster it shall be")
        return self

    @classmethod
    def asked(cls, budget: float | None, speedup: float | None, min_gsb: float, min_psnr: float | None) -> Self:
        """The target of the command line.

        Raises:
            ReelignError: both speeds are given, or none, or a number is out of its range.
        """
        try:
            return cls(budget=budget, speedup=speedup, min_gsb=min_gsb, min_psnr=min_psnr)
        except ValidationError as error:
            said = (f"{''.join(f'--{part}: ' for part in one['loc'])}{one['msg']}" for one in error.errors())
            raise ReelignError("; ".join(said).removeprefix("Value error, ") + ".") from None

    @property
    def speed_words(self) -> str:
        """The speed that is asked for."""
        return f"{self.budget:g} s a clip" if self.budget is not None else f"{self.speedup:g}x faster"

    def fast(self, trial: Trial) -> bool:
        """Whether a trial is as fast as asked."""
        if self.budget is not None:
            return trial.seconds <= self.budget
        return self.speedup is not None and trial.speedup.value >= self.speedup

    def proven(self, trial: Trial) -> bool:
        """Whether the whole interval of the overall GSB keeps the quality."""
        return self.good(trial) and trial.overall.low >= self.min_gsb

    def good(self, trial: Trial) -> bool:
        """Whether a trial keeps the quality: the estimate overall, and no axis is below with its whole interval."""
        return (
            trial.overall.value >= self.min_gsb
            and all(found.high >= self.min_gsb for found in trial.gsb.values())
            and (self.min_psnr is None or trial.psnr >= self.min_psnr)
        )


class Row(BaseModel):
    """Something that was tried, or refused.

    Attributes:
        validation: on the half of the prompts by which plans are chosen.
        test: on the other half, for those that came into question.
        refused: why nothing was measured.
        front: whether no other row is both faster and better, on the first half.
    """

    model_config = ConfigDict(extra="forbid")
    kind: str
    label: str
    acceleration: Acceleration | None = None
    validation: Trial | None = None
    test: Trial | None = None
    refused: str = ""
    front: bool = False


class Plan(BaseModel):
    """A plan and its evidence.

    Attributes:
        model, identity: the name it was made for, and the SHA-256 of its weights.
        size: frames, height and width of the clips that were measured.
        sampler: without acceleration.
        choice: what to do; empty where nothing met the target.
        prediction: of the choice, on prompts that had no part in choosing it.
        rows: everything that was tried or refused.
    """

    model_config = ConfigDict(extra="forbid")
    format: Literal[1] = 1
    model: str
    identity: str
    device: str
    versions: dict[str, str]
    size: tuple[int, int, int]
    judge: str
    prompts: dict[str, int]
    sampler: SampleConfig
    target: Target
    choice: Acceleration | None = None
    prediction: Trial | None = None
    rows: list[Row] = []

    @property
    def acceleration(self) -> Acceleration:
        """The choice.

        Raises:
            ReelignError: nothing met the target.
        """
        if self.choice is None:
            raise ReelignError(
                f"the plan for {self.model} found nothing {self.target.speed_words} at GSB >= "
                f"{self.target.min_gsb:g}; its table says what was tried. Make another one with a lower target."
            )
        return self.choice

    def apply(self, model: VideoModel) -> SampleConfig:
        """Change a loaded model in place as the plan says; the sampler that goes with it.

        Raises:
            ReelignError: nothing was chosen, or what was chosen is not possible here.
        """
        accelerate(model, self.acceleration, self.sampler)
        return self.acceleration.sampler(self.sampler)

    def concerns(self, model: VideoModel, size: tuple[int | None, int | None, int | None]) -> list[str]:
        """What makes the prediction doubtful for a clip of this size (empty: the model's own), in sentences."""
        found, native = [], model.native_size
        here = device_words(model.device)
        if here != self.device:
            found.append(f"the plan was measured on {self.device} and this is {here}: its speed may be another.")
        own = (native.frames, native.height, native.width)
        asked = tuple(side or usual for side, usual in zip(size, own, strict=True))
        if asked != self.size:
            found.append(
                f"the plan was measured on {_size(self.size)} and this clip has {_size(asked)}: speed and quality may "
                "be others."
            )
        if self.prediction is not None and self.prediction.warm_up:
            found.append(f"the plan compiles, which took {self.prediction.warm_up:.0f} s before the first clip there.")
        return found

    def save(self, path: Path) -> None:
        """Write as YAML."""
        text = yaml.safe_dump(self.model_dump(mode="json", exclude_none=True), sort_keys=False, allow_unicode=True)
        write_atomically(path, text)


def load_plan(path: Path, model: str) -> Plan:
    """Read a plan that is to be obeyed by a model.

    Raises:
        ReelignError: the file is missing or damaged, chose nothing, or was made for other weights.
    """
    plan = read_plan(path)
    plan.acceleration  # noqa: B018  (says so where there is none)
    if weights_identity(generator_name(model)) != plan.identity:
        raise ReelignError(
            f"{path} was made for {plan.model}, and {model} has other weights: what holds for the one need not hold "
            f"for the other. Make its own: reelign plan {model} ..."
        )
    return plan


def read_plan(path: Path) -> Plan:
    """Read a plan, whosever it is.

    Raises:
        ReelignError: the file is missing or damaged.
    """
    try:
        return Plan.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise ReelignError(f"{path} is no plan: {where}: {first['msg']}. Make it again with reelign plan.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReelignError(
            f"cannot read the plan {path}: {' '.join(str(error).split())}. Make it again with reelign plan."
        ) from error


def export_plan(path: Path, model: str, exported: Path) -> Path:
    """Write the plan of `model` into its exported folder, whose merged weights have an identity of their own.

    Raises:
        ReelignError: as `load_plan`.
    """
    plan = load_plan(path, model).model_copy(update={"identity": weights_identity(str(exported))})
    plan.save(exported / "plan.yaml")
    return exported / "plan.yaml"


def identity_facts(name: str, model: VideoModel) -> dict[str, Any]:
    """What a plan says of where it was made: model, identity, device and versions."""
    return {
        "model": name,
        "identity": weights_identity(generator_name(name)),
        "device": device_words(model.device),
        "versions": {library: version(library) for library in ("torch", "diffusers")},
    }


def device_words(device: torch.device) -> str:
    """The device as far as its name tells its speed."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, threads: {torch.get_num_threads()}"


def _size(size: tuple[int, ...]) -> str:
    frames, height, width = size
    return f"{frames} frames of {width} x {height}"
