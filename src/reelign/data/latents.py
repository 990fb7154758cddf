"""Encoded clips and captions, kept on disk so that an autoencoder or text encoder runs once for each.

A latent is keyed by the clip's SHA-256, the autoencoder's weights and the window; a text embedding by the caption and
the text encoder's weights. An entry that no longer matches its key is never found; one whose file is damaged is made
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reelign.data.buckets import Bucket, Window, fit_frames
from reelign.data.clip import read_clip
from reelign.errors import ReelignError
from reelign.models.base import Conditions, VideoModel

logger = logging.getLogger(__name__)
CHECKSUM = "sha256"
Progress = Callable[[int, int], None]


class LatentCache:
    """Shards of one window or caption each, under two letters of their key."""

    def __init__(self, folder: Path, model: VideoModel) -> None:
        self.folder, self.model = folder, model
        self.autoencoder = weights_digest(model.pipeline.vae)
        self.text_encoder = weights_digest(model.pipeline.text_encoder)

    def encode(
        self, dataset: Path, windows: Sequence[Window], progress: Progress | None = None
    ) -> list[tuple[Tensor, Conditions]]:
        """Latents (C, F, h, w) and conditions (without batch dimension) of every window.

        Raises:
            ReelignError: a clip was deleted or changed after the curation.
        """
        found = []
        for index, window in enumerate(windows):
            latents = self._latents(dataset, window)
            found.append((latents, self._conditions(str(window.row.get("caption") or ""))))
            if progress is not None:
                progress(index + 1, len(windows))
        return found

    def _latents(self, dataset: Path, window: Window) -> Tensor:
        row = window.row
        key = _key("latents", row["sha256"], self.autoencoder, window.bucket.key, window.indices)
        stored = self._read(key)
        if stored is not None:
            return stored["latents"]
        frames = read_window(dataset, window)
        latents = self.model.encode_video(torch.from_numpy(frames)[None])[0].cpu()
        self._write(key, {"latents": latents})
        return latents

    def _conditions(self, caption: str) -> Conditions:
        key = _key("text", caption, self.text_encoder)
        stored = self._read(key)
        if stored is None:
            stored = {name: value[0].cpu().clone() for name, value in self.model.encode_text([caption]).items()}
            self._write(key, stored)
        return stored

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                expected = (file.metadata() or {}).get(CHECKSUM)
        except (SafetensorError, OSError) as error:
            logger.warning("the cached %s is damaged (%s) and made again", path, error)
            return None
        if expected != _checksum(tensors):
            logger.warning("the cached %s is damaged (its content changed) and made again", path)
            return None
        return tensors

    def _write(self, key: str, tensors: dict[str, Tensor]) -> None:
        path = self._path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.partial")
        save_file(tensors, partial, metadata={CHECKSUM: _checksum(tensors)})
        partial.replace(path)


def read_window(dataset: Path, window: Window) -> np.ndarray:
    """Frames of a window, fitted to its bucket: uint8 (T, H, W, 3)."""
    path = dataset / str(window.row["path"])
    frames = _verified_frames(path, str(window.row["sha256"]))
    if max(window.indices) >= len(frames):
        raise ReelignError(
            f"{path} has {len(frames)} frames, its manifest says {window.row['frames']}. Run reelign curate again."
        )
    bucket: Bucket = window.bucket
    return fit_frames(frames[list(window.indices)], bucket.height, bucket.width)


@lru_cache(maxsize=1)
def _verified_frames(path: Path, sha256: str) -> np.ndarray:
    """All frames of a clip that is still what was curated; the windows of a clip follow each other."""
    if not path.exists():
        raise ReelignError(f"{path} is gone: the dataset changed after its curation. Run reelign curate again.")
    if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise ReelignError(f"{path} is not the clip that was curated (its SHA-256 differs). Run reelign curate again.")
    return read_clip(path).frames


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, shapes and values of a module's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(name.encode())
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
