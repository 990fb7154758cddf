"""A dataset on disk: clips, a row for each in `manifest.parquet`, and one in `dropped.parquet` for all left out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reelign.errors import ReelignError

MANIFEST, DROPPED = "manifest.parquet", "dropped.parquet"
KEPT_COLUMNS = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("caption", pa.string()),
        ("caption_source", pa.string()),
        ("fps", pa.float64()),
        ("frames", pa.int64()),
        ("height", pa.int64()),
        ("width", pa.int64()),
        ("seconds", pa.float64()),
        ("sha256", pa.string()),
        ("source", pa.string()),
        ("source_start", pa.float64()),
        ("source_end", pa.float64()),
        ("variable_frame_rate", pa.bool_()),
        ("duplicate_frames", pa.float64()),
        ("sharpness", pa.float64()),
        ("noise", pa.float64()),
        ("exposure", pa.float64()),
        ("colourfulness", pa.float64()),
        ("motion", pa.float64()),
        ("flicker", pa.float64()),
        ("black_bars", pa.float64()),
        ("text", pa.float64()),
        ("phash", pa.string()),
        ("cell", pa.string()),
    ]
)
DROPPED_COLUMNS = pa.schema(
    [
        ("source", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("rule", pa.string()),
        ("value", pa.string()),
        ("threshold", pa.string()),
        ("reason", pa.string()),
    ]
)


def storable(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with text that UTF-8 can hold: names of files may be any bytes, JSON may hold half a character."""
    return {
        key: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for key, value in row.items()
    }


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> None:
    """Write rows atomically; the same rows give the same bytes."""
    partial = path.with_name(f".{path.name}.partial")
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    pq.write_table(table, partial, compression="zstd")
    partial.replace(path)


def read_manifest(dataset: Path) -> list[dict[str, Any]]:
    """The rows of a dataset's clips.

    Raises:
        ReelignError: the folder is no dataset, its manifest is damaged, or it holds no clip.
    """
    path = dataset / MANIFEST
    if not path.exists():
        raise ReelignError(
            f"{dataset} is no dataset: {MANIFEST} is missing. Make one with: reelign curate FOOTAGE --out {dataset}"
        )
    rows = _read(path)
    if not rows:
        raise ReelignError(
            f"the dataset {dataset} is empty: every clip was dropped. {dataset / 'audit.html'} says why."
        )
    return rows


def read_dropped(dataset: Path) -> list[dict[str, Any]]:
    """The rows of what was left out."""
    return _read(dataset / DROPPED)


def verify_clips(dataset: Path, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Paths of the clips that are missing or no longer what they were."""
    wrong = []
    for row in rows:
        path = dataset / str(row["path"])
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
            wrong.append(str(path))
    return wrong


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise ReelignError(f"{path} is damaged or unreadable: {error}") from error
