"""Captions that come with footage, and captions asked of a vision model.

Layouts that people own are all read: `x.mp4` + `x.txt`; `metadata.csv|jsonl|json|parquet` or any such table beside
the media with a column for the file and one for the words; `prompts.txt` + `videos.txt`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from reelign.data.endpoint import ChatEndpoint, EndpointError, chat, picture_part, text_part
from reelign.errors import ReelignError

FILE_COLUMNS = ("video", "file_name", "path", "video_path", "file", "filename")
TEXT_COLUMNS = ("prompt", "caption", "text", "cap")
TABLES = {".csv", ".tsv", ".jsonl", ".json", ".parquet"}


class CaptionEndpoint(ChatEndpoint):
    """An OpenAI-compatible vision model that captions what has no words."""

    prompt: str = Field(
        default="Describe this video in one or two sentences: the subject, what it does, the setting, the camera.",
        description="What is asked along with four frames.",
    )


@dataclass
class Captions:
    """Words by file, and the files that only served to hold words.

    Attributes:
        words: path relative to the footage -> (caption, where it came from).
        notes: path of a text or table file -> what it was used for, or why not.
    """

    words: dict[str, tuple[str, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


def find_captions(folder: Path, files: Sequence[Path]) -> Captions:
    """Read every table and sidecar below `folder`; a file's own sidecar wins over a table."""
    found = Captions()
    names = {path.relative_to(folder).as_posix() for path in files}
    for path in sorted(files):
        if path.suffix.lower() in TABLES:
            _read_table(found, folder, path, names)
    _read_pair_of_lists(found, folder, names)
    media: dict[str, list[str]] = {}
    for name in sorted(names):
        if not _is_words(Path(name)):
            media.setdefault(Path(name).with_suffix("").as_posix(), []).append(name)
    for path in sorted(files):
        name = path.relative_to(folder).as_posix()
        if path.suffix.lower() == ".txt" and name not in found.notes:
            targets = media.get(path.relative_to(folder).with_suffix("").as_posix(), [])
            try:
                text = " ".join(_decode(path.read_bytes())[0].split())
            except OSError as error:
                found.notes[name] = _not_read(error)
                continue
            if text:
                found.words |= dict.fromkeys(targets, (text, f"sidecar {path.name}"))
            use = "caption of" if text else "empty caption of"
            found.notes[name] = f"{use} {', '.join(targets)}" if targets else "text file that belongs to no video"
    return found


def _is_words(path: Path) -> bool:
    return path.suffix.lower() in TABLES | {".txt"}


def _read_table(found: Captions, folder: Path, path: Path, names: set[str]) -> None:
    name = path.relative_to(folder).as_posix()
    try:
        rows, remark = _rows(path)
    except pa.ArrowException:
        found.notes[name] = "not read as captions: a damaged Parquet file"
        return
    except OSError as error:
        found.notes[name] = _not_read(error)
        return
    except (ValueError, RecursionError, csv.Error) as error:
        found.notes[name] = f"not read as captions: {error}"
        return
    taken = missing = empty = 0
    for row in rows:
        target = _target(folder, path, row, names)
        text = next((row[c] for c in TEXT_COLUMNS if isinstance(row.get(c), str) and row[c].strip()), None)
        if target is None:
            missing += 1
        elif text is None:
            empty += 1
        elif target not in found.words:
            found.words[target] = (" ".join(text.split()), f"table {path.name}")
            taken += 1
    parts = [f"captions of {taken} files"] + [
        f"{n} rows {why}" for n, why in ((missing, "name no file here"), (empty, "have no text")) if n
    ]
    found.notes[name] = (", ".join(parts) if taken or missing or empty else "a table without captions") + remark


def _target(folder: Path, table: Path, row: Mapping[str, Any], names: set[str]) -> str | None:
    """The media file that a row names, inside the footage only."""
    value = next((row[c] for c in FILE_COLUMNS if isinstance(row.get(c), str) and row[c]), None)
    if value is None or "\x00" in value:
        return None
    base = table.parent.relative_to(folder)
    for candidate in ((base / value).as_posix(), Path(value).as_posix()):
        if candidate in names:
            return candidate
    return None


def _rows(path: Path) -> tuple[list[dict[str, Any]], str]:
    """Rows of a table, and a remark on how it had to be read."""
    kind = path.suffix.lower()
    if kind == ".parquet":
        return pq.read_table(path).to_pylist(), ""
    text, remark = _decode(path.read_bytes())
    if kind == ".jsonl":
        rows, bad = [], 0
        for line in lines_of(text):
            try:
                value = json.loads(line) if line.strip() else None
            except (json.JSONDecodeError, RecursionError):
                value, bad = None, bad + 1
            if isinstance(value, dict):
                rows.append(value)
        return rows, remark + (f", {bad} lines are no JSON" if bad else "")
    if kind == ".json":
        value = json.loads(text)
        listed = value.get("data") if isinstance(value, dict) else value
        return [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else [], remark
    head = text.splitlines()[0] if text else ""
    delimiter = max(",;\t", key=head.count)
    rows = list(csv.DictReader(io.StringIO(text, newline=None), delimiter=delimiter))
    if any(None in row for row in rows):
        remark += ", some rows have more fields than the header: an unquoted comma cut their captions"
    return [{k: v for k, v in row.items() if k is not None} for row in rows], remark


def lines_of(text: str) -> list[str]:
    """Lines as editors count them: `str.splitlines` would also cut captions at U+2028 and its like."""
    return [line.rstrip("\n") for line in io.StringIO(text, newline=None)]


def _not_read(error: OSError) -> str:
    return f"not read as captions: {str(error.strerror or error).lower()}"


def _decode(raw: bytes) -> tuple[str, str]:
    try:
        return raw.decode("utf-8-sig"), ""
    except UnicodeDecodeError:
        return raw.decode("latin-1"), ", read as Latin-1 because it is not UTF-8"


def _read_pair_of_lists(found: Captions, folder: Path, names: set[str]) -> None:
    for videos in sorted(folder.rglob("videos.txt")):
        prompts = next((p for n in ("prompts.txt", "prompt.txt") if (p := videos.with_name(n)).is_file()), None)
        if prompts is None or not videos.is_file():
            continue
        try:
            files, texts = (lines_of(_decode(p.read_bytes())[0]) for p in (videos, prompts))
        except OSError as error:
            found.notes[videos.relative_to(folder).as_posix()] = _not_read(error)
            continue
        for path in (videos, prompts):
            found.notes[path.relative_to(folder).as_posix()] = "list of videos and prompts"
        if len(files) != len(texts):
            note = f"not used: {len(files)} videos but {len(texts)} prompts, so lines do not belong together"
            found.notes[videos.relative_to(folder).as_posix()] = note
            continue
        base = videos.parent.relative_to(folder)
        for file, text in zip(files, texts, strict=True):
            target = (base / file.strip()).as_posix()
            if target in names and text.strip():
                found.words[target] = (" ".join(text.split()), f"list {prompts.name}")


def ask_endpoint(endpoint: CaptionEndpoint, frames: np.ndarray) -> str:
    """Caption four frames of a clip, uint8 (T, H, W, 3).

    Raises:
        ReelignError: the endpoint did not answer with words, after three tries.
    """
    chosen = frames[np.linspace(0, len(frames) - 1, 4).astype(int)]
    content = [text_part(endpoint.prompt), *map(picture_part, chosen)]
    problem = ""
    for _ in range(3):
        try:
            return " ".join(chat(endpoint, content).split())
        except EndpointError as error:
            problem = str(error)
    raise ReelignError(f"the caption endpoint {endpoint.url} failed three times: {problem}")
