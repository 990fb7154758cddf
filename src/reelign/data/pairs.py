"""Pairs for a prompt enhancer: what a user types, and how the generator likes it said.

A file of pairs is JSON lines {"prompt": ..., "rewrite": ...}. JSON and CSV tables of the same columns are read too, and
published sets with the answers of several rewriters: {"prompt": ..., "enhanced": {rewriter: ...}}.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reelign.data.caption_words import SYNONYMS
from reelign.data.captions import lines_of
from reelign.data.inversion import invert
from reelign.errors import ReelignError
from reelign.files import write_atomically


@dataclass(frozen=True)
class PromptPair:
    """A prompt as a user types it, and its rewrite as the generator likes it."""

    prompt: str
    rewrite: str


def read_pairs(path: Path, rewriter: str | None = None) -> list[PromptPair]:
    """Read a file of pairs, with single spaces; those with an empty side are passed over, equal ones are kept once.

    Args:
        path: JSON lines, JSON (a list, or one under "data"), or a CSV or TSV table.
        rewriter: whose rewrites to take from a file with those of several; by default each of them gives a pair.

    Raises:
        ReelignError: no file, no readable text, a row that is no pair, no such rewriter, or no pair at all.
    """
    rows = [_sides(where, row) for where, row in _rows(path)]
    known = dict.fromkeys(name for _, rewrites in rows for name in rewrites if name)
    if rewriter is not None and rewriter not in known:
        there_are = f"there are {', '.join(known)}" if known else "its rewrites are nobody's in particular"
        raise ReelignError(f"{path} has no rewriter {rewriter!r}; {there_are}.")
    pairs = [
        PromptPair(_single_spaced(prompt), _single_spaced(rewrite))
        for prompt, rewrites in rows
        for name, rewrite in rewrites.items()
        if rewriter in (None, name)
    ]
    if found := list(dict.fromkeys(pair for pair in pairs if pair.prompt and pair.rewrite)):
        return found
    raise ReelignError(f"{path} holds no pair.")


def holds_pairs(path: Path) -> bool:
    """Whether the first row of a file is a pair."""
    try:
        return any(_sides(where, row) for where, row in _rows(path))
    except ReelignError:
        return False


def write_pairs(path: Path, pairs: Sequence[PromptPair]) -> None:
    """Write pairs as JSON lines, whole or not at all."""
    write_atomically(path, "".join(json_line(asdict(pair)) + "\n" for pair in pairs))


def json_line(row: Mapping[str, Any]) -> str:
    """A row as people can read it in any script; half a character, which UTF-8 cannot hold, is spelled as JSON does."""
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


def inverted(captions: Sequence[str], count: int, seed: int) -> list[PromptPair]:
    """`count` pairs of a caption and what a user might have typed for it; each caption serves equally often.

    Pair i depends on the captions, `seed` and i alone.

    Raises:
        ReelignError: there are no captions.
    """
    texts = [text for caption in captions if (text := _single_spaced(caption))]
    if not texts:
        raise ReelignError("there is no caption to make a prompt from.")
    order = np.random.default_rng(seed).permutation(len(texts))
    chosen = (texts[order[index % len(texts)]] for index in range(count))
    return [
        PromptPair(invert(text, np.random.default_rng((seed, index)), SYNONYMS), text)
        for index, text in enumerate(chosen)
    ]


def _single_spaced(text: str) -> str:
    return " ".join(text.split())


def _sides(where: str, row: Any) -> tuple[str, dict[str, str]]:
    """The prompt of a row and its rewrites by rewriter; ours have no name."""
    if isinstance(row, dict) and isinstance(row.get("prompt"), str):
        rewrites = {"": row["rewrite"]} if "rewrite" in row else row.get("enhanced")
        if isinstance(rewrites, dict) and all(isinstance(text, str) for text in rewrites.values()):
            return row["prompt"], rewrites
    expected = '"prompt" with "rewrite", or with "enhanced": {rewriter: text}'
    raise ReelignError(f"{where}: {str(row)[:80]!r} is no pair; expected {expected}.")


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Every row, with where it stands."""
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ReelignError(f"cannot read the pairs {path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ReelignError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    kind = path.suffix.lower()
    if kind == ".jsonl":
        for number, line in enumerate(lines_of(content), 1):
            if line.strip():
                yield f"{path}, line {number}", _json(path, line, number)
    elif kind == ".json":
        value = _json(path, content, 1)
        listed = value.get("data") if isinstance(value, dict) else value
        if not isinstance(listed, list):
            raise ReelignError(f'{path}, line 1: expected a list of pairs, or one under "data".')
        yield from ((f"{path}, row {number}", row) for number, row in enumerate(listed, 1))
    elif kind in (".csv", ".tsv"):
        table = csv.DictReader(io.StringIO(content, newline=None), delimiter="\t" if kind == ".tsv" else ",")
        try:
            yield from ((f"{path}, line {table.line_num}", row) for row in table)
        except csv.Error as error:
            raise ReelignError(f"{path}, line {table.line_num}: no table ({error}).") from error
    else:
        raise ReelignError(f"{path} is no file of pairs; expected .jsonl, .json, .csv or .tsv.")


def _json(path: Path, text: str, line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ReelignError(f"{path}, line {line + error.lineno - 1}: no JSON ({error.msg}).") from error
    except RecursionError as error:
        raise ReelignError(f"{path}, line {line}: no JSON ({error}).") from error
