"""Clips on demand from a frozen generator: what was rendered once is never rendered again.

A shot is the generator's text and a take, which names its noise. A clip follows from shot, weights and their type,
sampler, size and seed; all but the shot give the cache its folder. Clips that were rendered together lie in one file,
which is whole or absent: a run that was killed finds what it would have rendered anyway.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file

from reelign.evaluate.battery import BatteryConfig, generate_batch
from reelign.models.base import VideoModel
from reelign.models.load import weights_identity
from reelign.sampling.sample import SampleConfig
from reelign.train.parallel import World


class Shot(NamedTuple):
    """What the generator is given and the number of the noise that it starts from."""

    text: str
    take: int


class Studio:
    """Renders shots of one generator at one setting.

    Attributes:
        rendered, reused: shots of all ranks so far, by whether they cost anything.
        nfe: network evaluations of all ranks so far.
    """

    def __init__(
        self, model: VideoModel, sampler: SampleConfig, size: BatteryConfig, seed: int, cache: Path, world: World
    ) -> None:
        self.model, self.sampler, self.size, self.seed, self.world = model, sampler, size, seed, world
        dtype = str(next(iter(model.denoisers().values())).dtype)
        facts = [weights_identity(model.name), dtype, sampler.model_dump(mode="json"), _shape(size), seed]
        self.folder = cache / hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        self.rendered = self.reused = self.nfe = 0
        self._places: dict[Shot, tuple[Path, int]] = {}
        self._seen: set[Path] = set()

    def film(self, shots: Sequence[Shot]) -> dict[Shot, np.ndarray]:
        """Frames uint8 (T, H, W, 3) of each shot. Every rank must call; what several ask for is rendered once."""
        self._look()
        wanted = list(dict.fromkeys(shot for asked in self._everyones(list(shots)) for shot in asked))
        missing = [shot for shot in wanted if shot not in self._places]
        self.rendered += len(missing)
        self.reused += len(wanted) - len(missing)
        own = missing[self.world.rank :: self.world.size]
        spent = 0
        for start in range(0, len(own), self.size.batch_size):
            spent += self._render(own[start : start + self.size.batch_size])
        self.nfe += sum(self._everyones(spent))
        self._look()
        return {shot: self._read(shot) for shot in dict.fromkeys(shots)}

    def _render(self, shots: Sequence[Shot]) -> int:
        prompts = [(shot.text, f"take {shot.take}") for shot in shots]
        frames, nfe = generate_batch(self.model, prompts, self.size, self.sampler, self.seed)
        names = json.dumps(shots)
        path = self.folder / f"{hashlib.sha256(names.encode()).hexdigest()[:24]}.safetensors"
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        save_file({"frames": torch.from_numpy(frames).contiguous()}, partial, metadata={"shots": names})
        partial.replace(path)
        return nfe

    def _look(self) -> None:
        """Learn what has been rendered so far."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._seen):
            with safe_open(path, "pt") as file:
                shots = json.loads(file.metadata()["shots"])
            for row, shot in enumerate(shots):
                self._places.setdefault(Shot(*shot), (path, row))
            self._seen.add(path)

    def _read(self, shot: Shot) -> np.ndarray:
        path, row = self._places[shot]
        with safe_open(path, "np") as file:
            return file.get_slice("frames")[row]

    def _everyones(self, value: object) -> list:
        """The values of all ranks, in their order."""
        if self.world.mesh is None:
            return [value]
        found: list = [None] * self.world.size
        dist.all_gather_object(found, value)
        return found


def _shape(size: BatteryConfig) -> list[float]:
    return [size.frames, size.height, size.width, size.fps]
