"""Prompt lists: text files with one prompt a line, JSON, JSON lines and CSV tables."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reelign.data.captions import lines_of
from reelign.errors import ReelignError

COLUMNS = ("prompt", "caption", "text", "prompt_en", "cap", "Prompt")


@dataclass(frozen=True)
class ListedPrompt:
    """A prompt and its name, which follows from the words alone."""

    id: str
    text: str


def read_prompts(path: Path) -> list[ListedPrompt]:
    """Read a list; empty prompts are passed over, equal ones are kept once.

    Raises:
        ReelignError: no file, no readable text, no column with prompts or nothing in it.
    """
    prompts = {
        text: ListedPrompt(hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12], text)
        for text in listed_texts(path)
        if text
    }
    if not prompts:
        raise ReelignError(f"{path} holds no prompt.")
    return list(prompts.values())


def listed_texts(path: Path) -> list[str]:
    """All texts of a list in their order, with single spaces: the empty ones and the repeats too.

    Raises:
        ReelignError: no file, no readable text or no column with prompts.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ReelignError(f"cannot read the prompt list {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ReelignError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    return [" ".join(text.split()) for text in _texts(path, content)]


def _texts(path: Path, content: str) -> Iterable[str]:
    kind = path.suffix.lower()
    if kind == ".jsonl":
        rows = [_json(path, line, number) for number, line in enumerate(lines_of(content), 1) if line.strip()]
        return [_pick(path, row) for row in rows]
    if kind == ".json":
        value = _json(path, content, 1)
        listed = value.get("data") if isinstance(value, dict) else value
        if not isinstance(listed, list):
            raise ReelignError(f'{path} must hold a list of prompts, or one under "data".')
        return [_pick(path, row) for row in listed]
    if kind in (".csv", ".tsv"):
        rows = csv.DictReader(io.StringIO(content, newline=None), delimiter="\t" if kind == ".tsv" else ",")
        try:
            return [_pick(path, row) for row in rows]
        except csv.Error as error:
            raise ReelignError(f"{path}, line {rows.line_num}: no table ({error}).") from error
    return lines_of(content)


def _json(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ReelignError(f"{path}, line {line}: no JSON ({error}).") from error


def _pick(path: Path, row: Any) -> str:
    if isinstance(row, str):
        return row
    for column in COLUMNS:
        value = row.get(column) if isinstance(row, dict) else None
        if isinstance(value, list):
            value = value[0] if value else ""
        if isinstance(value, str):
            return value
    raise ReelignError(f"{path}: no prompt found in {str(row)[:80]!r}; expected one of the keys {', '.join(COLUMNS)}.")
