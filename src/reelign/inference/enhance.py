"""Prompts said as a generator likes them: `reelign enhance` and `reelign generate --enhance`.

Here a name becomes an enhancer, for every verb that takes one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from textwrap import shorten

from reelign.data.endpoint import EndpointError
from reelign.data.pairs import json_line
from reelign.data.prompts import read_prompts
from reelign.enhancer.enhancer import Enhancer, Manner, load_enhancer, read_manner, served_enhancer
from reelign.enhancer.language_model import BATCH
from reelign.enhancer.rewrite import Rewrite
from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.models.load import enhancer_folder, model_folder

ADDRESS = ("http://", "https://")
KINDS = (
    "the word 'miniature', an artifact that carries an enhancer such as runs/miniature-enhance/enhance, an enhancer "
    "folder, the hub id of a chat model such as Qwen/Qwen3-4B-Instruct-2507, or the address of a server such as "
    "http://localhost:8000/v1"
)


def find_enhancer(name: str, like: str | None = None, served_name: str | None = None) -> Enhancer:
    """The enhancer that a name means.

    Args:
        name: the word 'miniature', an artifact that carries an enhancer, an enhancer folder, the hub id of a chat
            model, or the address of an OpenAI-compatible server.
        like: whose manner a served model is asked in, any of the other kinds; None for the manner of any chat model.
        served_name: what the server calls the model.

    Raises:
        ReelignError: the name means no enhancer, or what it means cannot be loaded.
    """
    if name.startswith(ADDRESS):
        if not served_name:
            raise ReelignError(f"{name} is a server; say with --served-name what it calls the model.")
        return served_enhancer(name, served_name, Manner() if like is None else read_manner(_language_model(like)))
    if served_name:
        raise ReelignError("--served-name is for a server; give its address (http://...) as --enhancer.")
    return load_enhancer(_language_model(name))


def enhancer_for(model: str, name: str | None = None, served_name: str | None = None) -> Enhancer:
    """The enhancer for a video model: the one that is named, else the one that the model carries.

    Raises:
        ReelignError: there is none, or it cannot be loaded.
    """
    folder = enhancer_folder(model)
    carried = str(folder) if folder else None
    chosen = name or carried
    if chosen is None:
        raise ReelignError(f"{model} carries no prompt enhancer; name one with --enhancer, or leave --enhance out.")
    return find_enhancer(chosen, carried, served_name)


def _language_model(name: str) -> str:
    """What `load_enhancer` loads for a name that is no address."""
    path = Path(name)
    if name == "miniature" or ((path / "config.json").exists() and not (path / "model_index.json").exists()):
        return name
    try:
        carried = enhancer_folder(name)
        is_hub_id = model_folder(name) is None and ":" not in name
    except ReelignError:
        carried, is_hub_id = None, False
    if carried is None and not is_hub_id:
        raise ReelignError(f"{name!r} is no prompt enhancer and carries none. Give {KINDS}.")
    return str(carried or name)


def enhance_prompts(
    enhancer: Enhancer, prompts: Sequence[str], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Rewrite]:
    """One rewrite for each prompt, in order. Prompts are taken with single spaces, as lists of them are.

    Args:
        enhancer: who rewrites.
        prompts: the users' words; what of them is no Unicode text becomes a question mark.
        progress: told how many prompts of how many are done.

    Raises:
        ReelignError: a server gave no answer.
    """
    texts = [" ".join(prompt.encode("utf-8", "replace").decode().split()) for prompt in prompts]
    found: list[Rewrite] = []
    for start in range(0, len(texts), BATCH):
        try:
            found += enhancer(texts[start : start + BATCH])
        except EndpointError as error:
            raise ReelignError(
                f"the enhancer does not answer: {error}. Is a server running there, and is that its name for the model?"
            ) from error
        progress(len(found), len(texts))
    return found


def listed_prompts(path: Path, out: Path) -> list[str]:
    """The prompts of a list whose rewrites go to `out`.

    Raises:
        ReelignError: there is no prompt, or `out` is no place to write to.
    """
    if out.is_dir():
        raise ReelignError(f"{out} is a folder; --out names the file to write.")
    if out.exists() and path.exists() and out.samefile(path):
        raise ReelignError(f"{out} is what is read; write the rewrites to another file.")
    return [listed.text for listed in read_prompts(path)]


def write_rewrites(out: Path, rewrites: Iterable[Rewrite]) -> None:
    """Write rewrites as JSON lines {"prompt", "text", "outcome", "reason"}, whole or not at all."""
    names = ("prompt", "text", "outcome", "reason")
    rows = ({name: getattr(rewrite, name) for name in names} for rewrite in rewrites)
    write_atomically(out, "".join(json_line(row) + "\n" for row in rows))


def remark(rewrite: Rewrite) -> str:
    """What became of a prompt that was not rewritten; empty for one that was."""
    if rewrite.outcome == "rewritten":
        return ""
    refused = f"; refused: {_quoted(rewrite.answer)}" if rewrite.outcome == "fallback" else ""
    return f"{_quoted(rewrite.prompt)} stands as it is ({rewrite.label}{refused})"


def outcome_rows(labels: Iterable[str]) -> list[list[str]]:
    """How many prompts had each outcome, and their share: the rows of a table, the commonest first."""
    counts = Counter(labels)
    return [[label, str(count), f"{count / counts.total():.0%}"] for label, count in counts.most_common()]


def _quoted(text: str) -> str:
    return json.dumps(shorten(text, 160, placeholder=" ..."), ensure_ascii=False)
