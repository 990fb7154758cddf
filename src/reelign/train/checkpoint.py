"""Checkpoints that are whole or absent: tensors by torch.distributed.checkpoint, the rest in a manifest written last.

```
checkpoints/step-00000100/   *.distcp  .metadata
                             manifest.json   {"step", "metric", "values", "files": {name: sha256}, "sha256": of these}
```
A folder without a manifest, or with a file that differs from it, is not a checkpoint. Tensors may be plain or
sharded: a checkpoint of two ranks is read by one and the other way round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from reelign.errors import ReelignError
from reelign.files import write_atomically

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
State = Mapping[str, Any]
"""By name: objects with `state_dict` / `load_state_dict`, mappings of tensors, or plain values that JSON can hold."""


class Checkpoints:
    """The checkpoints of one stage: the newest `keep_last` and the best."""

    def __init__(self, folder: Path, keep_last: int = 2) -> None:
        self.folder, self.keep_last = folder, keep_last
        self._trusted: set[Path] = set()

    def save(self, step: int, state: State, metric: float | None = None) -> Path:
        """Write a checkpoint; every rank must call this.

        Args:
            step: optimiser steps done.
            state: what to save.
            metric: higher is better; the checkpoint with the highest is kept.

        Raises:
            ReelignError: it could not be written (a full disk, say); earlier checkpoints are intact.
        """
        target = self.folder / f"step-{step:08d}"
        partial = target.with_name(target.name + ".partial")
        tensors, values = _split(state)
        main = not dist.is_initialized() or dist.get_rank() == 0
        try:
            if main:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
            _barrier()
            dcp.save(tensors, checkpoint_id=partial, no_dist=not dist.is_initialized())
            if main:
                files = {p.name: _sha256(p) for p in sorted(partial.iterdir())}
                manifest = {"step": step, "metric": metric, "values": values, "files": files}
                write_atomically(partial / MANIFEST, json.dumps(manifest | {"sha256": _seal(manifest)}))
                shutil.rmtree(target, ignore_errors=True)
                partial.replace(target)
                self._trusted.add(target)
                self._forget()
        except (OSError, CheckpointException) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise ReelignError(
                f"cannot write the checkpoint {target}: {error}. Earlier checkpoints are intact: free some space and "
                "run the same command again."
            ) from error
        _barrier()
        return target

    def latest(self) -> Path | None:
        """The newest intact checkpoint; damaged ones are named in the log and passed over."""
        for path in sorted(self.folder.glob("step-????????"), reverse=True):
            if _intact(path):
                return path
        return None

    def best(self) -> Path | None:
        """The intact checkpoint with the highest metric; the newest of equals."""
        return _highest([path for path in self._whole() if _intact(path)])

    def load(self, path: Path, state: State) -> dict[str, Any]:
        """Read a checkpoint into `state`, in place; every rank must call this.

        Returns:
            The plain values.

        Raises:
            ReelignError: the checkpoint does not belong to this state.
        """
        tensors, _ = _split(state)
        values = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["values"]
        try:
            dcp.load(tensors, checkpoint_id=path, no_dist=not dist.is_initialized())
        except (CheckpointException, RuntimeError, KeyError) as error:
            raise ReelignError(
                f"the checkpoint {path} does not fit this run: {error}. It was written by another recipe; "
                "give this run another name or remove the checkpoint."
            ) from error
        for name, part in state.items():
            if hasattr(part, "load_state_dict"):
                own = {
                    key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")
                }
                part.load_state_dict(own | values.get(name, {}))
        return values

    def _whole(self) -> list[Path]:
        return [path for path in sorted(self.folder.glob("step-????????")) if (path / MANIFEST).exists()]

    def _forget(self) -> None:
        """Remove all but the newest and the best.

        What this process wrote or has read once is not read again: a save should not cost the reading of every
        checkpoint that is kept.
        """
        self._trusted |= {path for path in self._whole() if path not in self._trusted and _intact(path)}
        best = _highest([path for path in self._whole() if path in self._trusted])
        for path in self._whole()[: -self.keep_last]:
            if path != best:
                shutil.rmtree(path)


def _highest(paths: list[Path]) -> Path | None:
    """The checkpoint with the highest metric; the newest of equals. One that lost its manifest has none."""
    rated = [(metric, path) for path in paths if (metric := _metric(path)) is not None]
    return max(rated, default=(None, None))[1]


def _metric(path: Path) -> float | None:
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["metric"]
    except (OSError, ValueError, KeyError):
        return None


def _split(state: State) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under `part/name`, and plain values under the part's name."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, part in state.items():
        content = part.state_dict() if hasattr(part, "state_dict") else part
        if isinstance(content, Mapping):
            tensors |= {f"{name}/{key}": value.detach() for key, value in content.items() if isinstance(value, Tensor)}
            values[name] = {key: value for key, value in content.items() if not isinstance(value, Tensor)}
        else:
            values[name] = content
    return tensors, values


def _intact(path: Path) -> bool:
    """Whether the manifest is there and every file is the one that it names."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        wrong = [MANIFEST] if manifest.pop("sha256") != _seal(manifest) else []
        wrong += [name for name, digest in manifest["files"].items() if _sha256(path / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        logger.warning("the checkpoint %s is damaged (%s) and passed over", path, error)
        return False
    if wrong:
        logger.warning("the checkpoint %s is damaged (%s differ) and passed over", path, ", ".join(wrong))
    return not wrong


def _seal(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
