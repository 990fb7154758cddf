"""An enhancer: a language model, the way it is asked, and the guard between its answers and the generator.

On disk it is an ordinary transformers folder with a chat template, and beside it `enhancer.json`:
`{"template", "window": [least, most], "guard", "tokens"}`. Any OpenAI-compatible server can serve the folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from reelign.data.endpoint import ChatEndpoint, EndpointError, ask, text_part
from reelign.enhancer.faithful import Lexical
from reelign.enhancer.faithful_miniature import OfTheMiniature
from reelign.enhancer.guard import Guard
from reelign.enhancer.language_model import (
    answer_ids,
    conversation_ids,
    finished,
    load_language_model,
    similarity,
)
from reelign.enhancer.rewrite import Rewrite
from reelign.enhancer.template import TEMPLATES, Messages, Template
from reelign.errors import ReelignError
from reelign.files import write_atomically

CARD = "enhancer.json"
WAITS = (1.0, 4.0)
"""Seconds before the second and third try of a server that has no answer for a passing reason."""
Similar = Callable[[str, Sequence[str]], float]
Answers = Callable[[Sequence[Messages]], list[tuple[str, bool]]]
"""Conversations to answers, each with whether it came to its own end."""


@dataclass(frozen=True)
class Manner:
    """How a language model is asked and guarded.

    Attributes:
        template: name of the frame around the user's words.
        window: least and most words of the generator's own captions.
        guard: "miniature" reads the miniature's words exactly; "lexical" is for any prompt.
        tokens: of an answer at most.
    """

    template: str = "video-1"
    window: tuple[int, int] = (40, 160)
    guard: Literal["lexical", "miniature"] = "lexical"
    tokens: int = 320

    def __post_init__(self) -> None:
        if self.template not in TEMPLATES:
            raise ReelignError(f"there is no template {self.template!r}; there are {', '.join(TEMPLATES)}.")
        if self.guard not in ("lexical", "miniature"):
            raise ReelignError(f"there is no guard {self.guard!r}; there are lexical and miniature.")

    def build_template(self) -> Template:
        """The frame."""
        return TEMPLATES[self.template]

    def build_guard(self, similar: Similar | None) -> Guard:
        """The guard; `similar` lets a lexical one see that words mean the same."""
        faithfulness = OfTheMiniature() if self.guard == "miniature" else Lexical(similar)
        return Guard(faithfulness, self.window)


class Enhancer:
    """Rewrites prompts: call it with the users' words."""

    def __init__(self, answers: Answers, manner: Manner, similar: Similar | None = None) -> None:
        self.answers, self.manner = answers, manner
        self.template, self.guard = manner.build_template(), manner.build_guard(similar)

    def __call__(self, prompts: Sequence[str]) -> list[Rewrite]:
        """One rewrite for each prompt, in order; equal prompts are asked about once. Half a surrogate becomes "?"."""
        prompts = [prompt.encode("utf-8", "replace").decode() for prompt in prompts]
        found = {prompt: self.guard.asks(prompt) for prompt in prompts}
        asked = [prompt for prompt, alone in found.items() if alone is None]
        said = self.answers([self.template.messages(prompt) for prompt in asked]) if asked else []
        for prompt, (answer, ended) in zip(asked, said, strict=True):
            found[prompt] = self.guard.judge(prompt, answer, ended, self.template.parse(answer))
        return [rewrite for prompt in prompts if (rewrite := found[prompt]) is not None]


def load_enhancer(name: str, dtype: str = "float32", device: torch.device | str | None = None) -> Enhancer:
    """The enhancer in a folder, or a language model as it comes: the word 'miniature', a folder or a hub id.

    Raises:
        ReelignError: nothing is there or a file is damaged.
    """
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, tokenizer = load_language_model(name, dtype, place)
    manner = read_manner(name)

    def answers(questions: Sequence[Messages]) -> list[tuple[str, bool]]:
        rows = [conversation_ids(tokenizer, question) for question in questions]
        found = answer_ids(model, tokenizer, rows, manner.tokens)
        return [
            (tokenizer.decode(answer, skip_special_tokens=True), finished(model, tokenizer, answer)) for answer in found
        ]

    return Enhancer(answers, manner, similarity(model, tokenizer))


def served_enhancer(url: str, model: str, manner: Manner, concurrency: int = 8) -> Enhancer:
    """An enhancer behind an OpenAI-compatible server.

    Raises:
        EndpointError: when it is called, the server has no answer.
    """
    endpoint = ChatEndpoint(url=url, model=model)

    def answered(question: Messages) -> tuple[str, bool]:
        system = "".join(turn["content"] for turn in question if turn["role"] == "system")
        content = [text_part(question[-1]["content"])]
        for seconds in WAITS:
            try:
                return ask(endpoint, content, system, max_tokens=manner.tokens)
            except EndpointError as error:
                if not error.passing:
                    raise
                time.sleep(seconds)
        return ask(endpoint, content, system, max_tokens=manner.tokens)

    def answers(questions: Sequence[Messages]) -> list[tuple[str, bool]]:
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(answered, questions))

    return Enhancer(answers, manner)


def read_manner(name: str) -> Manner:
    """What `enhancer.json` of a folder says; the miniature's manner for its word, the default for anything else."""
    if name == "miniature":
        return MINIATURE_MANNER
    path = Path(name) / CARD
    if not path.exists():
        return Manner()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        window = int(values["window"][0]), int(values["window"][1])
        return Manner(values["template"], window, values["guard"], int(values["tokens"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ReelignError(f"{path} is damaged: {error!r}. Make the enhancer again.") from error


def save_enhancer(folder: Path, model: Any, tokenizer: Any, manner: Manner) -> None:
    """Write an ordinary transformers folder with `enhancer.json`; a half-written one never bears the name."""
    partial = folder.with_name(folder.name + ".partial")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_atomically(partial / CARD, json.dumps(asdict(manner), indent=2))
    for file in partial.iterdir():
        file.chmod(0o644)  # safetensors writes for its owner alone, and a server may be another user
    partial.replace(folder)


MINIATURE_MANNER = Manner("plain-1", (10, 11), "miniature", 24)
