"""A recipe: one strict YAML that says everything about a run.

It composes the config classes that live beside their code. Unknown keys are errors that name the key's path and the
nearest valid key; `key.path=value` overrides on the command line are read as YAML. The resolved recipe is written
into the run and replays it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Self, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from reelign.data.curate import CurateConfig
from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig
from reelign.sampling.sample import SampleConfig
from reelign.stages.distill_recipe import DistillConfig
from reelign.stages.dpo import DpoConfig
from reelign.stages.enhance_recipe import EnhanceConfig
from reelign.stages.reward import RewardConfig
from reelign.stages.rlhf import RlhfConfig
from reelign.stages.sft import SftConfig
from reelign.stages.votes import VotesConfig

Config = TypeVar("Config", bound=BaseModel)


class CurateStage(BaseModel):
    """Curation as the first stage of a run."""

    model_config = ConfigDict(extra="forbid")
    footage: Path = Field(description="Folder of real footage; the word 'miniature' is the footage that ships.")
    config: CurateConfig = Field(default_factory=CurateConfig, description="Rules of the curation.")


class Recipe(BaseModel):
    """Everything about a run. Relative paths are relative to the working directory."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the run: its folder under `runs`.")
    seed: int = Field(default=0, ge=0, description="Every random number of the run follows from it.")
    model: str = Field(description="'miniature', a diffusers folder, a finished artifact or a hub id.")
    dtype: str = Field(
        default="float32", pattern="^(float32|bfloat16)$", description="Type of weights and activations."
    )
    runs: Path = Field(default=Path("runs"), description="Folder that holds all runs.")
    sampler: SampleConfig = Field(
        default_factory=SampleConfig, description="The deployment sampler: validation, evaluation and samples use it."
    )
    battery: BatteryConfig = Field(default_factory=BatteryConfig, description="Prompts, seeds and judge of evaluation.")
    curate: CurateStage | None = Field(default=None, description="Turn footage into a dataset before training.")
    sft: SftConfig | None = Field(default=None, description="Supervised fine-tuning.")
    votes: VotesConfig | None = Field(default=None, description="Whose votes `reward` and `dpo` learn from.")
    reward: RewardConfig | None = Field(default=None, description="A reward that is fitted to the votes.")
    dpo: DpoConfig | None = Field(default=None, description="Preference optimisation on the votes themselves.")
    rlhf: RlhfConfig | None = Field(default=None, description="Reinforcement learning from rewards, after it.")
    enhance: EnhanceConfig | None = Field(default=None, description="A language model that rewrites prompts, after it.")
    distill: DistillConfig | None = Field(default=None, description="A few-step or streaming student, last.")

    @model_validator(mode="after")
    def _has_votes(self) -> Self:
        for name in ("reward", "dpo"):
            if getattr(self, name) is not None and self.votes is None:
                raise ValueError(f"`{name}:` learns from votes, and there is no `votes:` to say whose")
        return self

    @model_validator(mode="after")
    def _has_guidance(self) -> Self:
        distill = self.distill
        if distill is None or distill.unguided is None:
            return self
        if not bool(distill.absorbed(self.sampler).guided.any()):
            raise ValueError(
                "`distill.unguided:` takes over guidance, and at the student's levels there is none: give the part a "
                "guidance_scale of its own, look at `sampler.guidance_interval`, or leave the part out"
            )
        return self

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return self.runs / self.name


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` overrides.

    Raises:
        ReelignError: the file is missing or no YAML, a key is unknown, a value does not fit; the message names the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReelignError(f"there is no recipe {path}. {_nearby(path)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReelignError(f"{path} is not a readable YAML file: {error}") from error
    if not isinstance(values, dict):
        raise ReelignError(f"{path} holds no recipe: expected keys such as `name:` and `model:` at the top.")
    for override in overrides:
        _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise ReelignError(f"{path}:\n" + "\n".join(_explain(problem) for problem in error.errors())) from None


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML; `load_recipe` of it gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _nearby(path: Path) -> str:
    recipes = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"Recipes beside it: {', '.join(recipes)}." if recipes else "Is the working directory the right one?"


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ReelignError(f"the override {override!r} is not of the form key.path=value.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReelignError(f"the value of the override {override!r} is not YAML: {error}") from error
    *parents, last = key.split(".")
    place: Any = values
    for depth, parent in enumerate(parents):
        place = _enter(place, parent, ".".join(parents[: depth + 1]))
    if isinstance(place, list):
        place[_index(place, last, key)] = value
    else:
        place[last] = value


def _enter(place: Any, key: str, path: str) -> Any:
    if isinstance(place, list):
        inner = place[_index(place, key, path)]
    else:
        if place.get(key) is None:
            place[key] = {}
        inner = place[key]
    if not isinstance(inner, dict | list):
        raise ReelignError(f"the override cannot go below `{path}`: it is a single value, {inner!r}.")
    return inner


def _index(place: list[Any], key: str, path: str) -> int:
    if not key.isdecimal() or int(key) >= len(place):
        raise ReelignError(f"`{path}`: the list has {len(place)} items; name one by its number from 0.")
    return int(key)


def _explain(problem: Any, root: type[BaseModel] = Recipe) -> str:
    *parents, last = problem["loc"] or ("",)
    if problem["type"] != "extra_forbidden":
        path, _ = _follow(problem["loc"], root)
        between_keys = isinstance(problem["input"], dict) and problem["type"] == "value_error"
        given = "" if between_keys or problem["type"] == "missing" else f" (given: {problem['input']!r})"
        return f"  {path}{': ' if path else ''}{problem['msg']}{given}"
    path, classes = _follow(parents, root)
    valid = sorted({key for model in classes for key in model.model_fields})
    near = difflib.get_close_matches(str(last).lower(), valid, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"valid keys here: {', '.join(valid)}."
    return f"  {path}{'.' if path else ''}{last}: unknown key; {hint}"


def _follow(location: Sequence[Any], root: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """The key path of a place in the file, and the classes that may stand there.

    Pydantic puts the member of a union (its class, or its `kind`) into the location; it is not a key of the file.
    """
    path: list[str] = []
    classes: list[type[BaseModel]] = [root]
    for part in location:
        fields = [found.model_fields[part].annotation for found in classes if part in found.model_fields]
        members = [found for found in classes if part == found.__name__ or part in _kinds(found)]
        if members and not fields:
            classes = members
            continue
        path.append(str(part))
        if not isinstance(part, int):
            classes = [model for annotation in fields for model in _models(annotation)]
    return ".".join(path), classes


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    """What a member of a discriminated union is called in the file."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType, Annotated, list, tuple, dict):
        return [model for part in get_args(annotation) for model in _models(part)]
    return []


def parse_settings(kind: type[Config], settings: Sequence[str]) -> Config:
    """A config from `key=value` settings alone, with the same errors as a recipe."""
    values: dict[str, Any] = {}
    for setting in settings:
        _override(values, setting)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ReelignError("\n".join(_explain(problem, kind) for problem in error.errors())) from None
