"""What a language model is taught: pairs that its guard would let through, in answers that it can finish."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from jinja2 import TemplateError

from reelign.data.pairs import PromptPair
from reelign.doctor.prompts import unread
from reelign.enhancer.enhancer import Manner
from reelign.enhancer.guard import count_words
from reelign.enhancer.language_model import conversation_ids, similarity
from reelign.errors import ReelignError
from reelign.models.base import VideoModel
from reelign.stages.enhance_recipe import EnhanceConfig, PairFile

GUARDED = 1000
"""Pairs that are shown to the guard, evenly spread."""
MOST_REFUSED, MOST_CUT = 0.5, 0.05
"""Share of the pairs that the guard may refuse, and of the answers that may be cut."""
Language = tuple[Any, Any]
"""Model and tokenizer."""


@dataclass(frozen=True)
class Taught:
    """Pairs, and the manner that follows from them."""

    pairs: list[PromptPair]
    manner: Manner


@dataclass(frozen=True)
class Lengths:
    """Tokens of the longest question and answer."""

    question: int
    answer: int


def pairs_line(config: EnhanceConfig, language: Language | None) -> tuple[Taught, str]:
    """How many pairs there are, how long, and how many teach what the guard forbids."""
    for place, source in enumerate(config.supervised.pairs):
        if isinstance(source, PairFile) and not source.path.exists():
            raise ReelignError(
                f"enhance.supervised.pairs.{place}: there is no {source.path}. Make it from the generator's captions: "
                f"reelign pairs CAPTIONS --out {source.path}"
            )
    pairs = [pair for source in config.supervised.pairs for pair in source.read()]
    manner = config.manner(pairs)
    least, most = manner.window
    prompts, rewrites = (
        [count_words(text) for text in side] for side in ([p.prompt for p in pairs], [p.rewrite for p in pairs])
    )
    outside = sum(not least <= words <= most for words in rewrites) / len(pairs)
    measured = "as measured on them" if config.window is None else "as enhance.window says"
    sentence = (
        f"{len(pairs):,} pairs, {sum(prompts) / len(pairs):.1f} words in a prompt and {sum(rewrites) / len(pairs):.1f} "
        f"in a rewrite; the window is {least} to {most} words, {measured}, and {outside:.1%} of them lie outside"
    )
    count = min(GUARDED, len(pairs))
    looked = [pairs[place * len(pairs) // count] for place in range(count)]
    refused, reason = _refused(looked, manner, language)
    sentence += f"; the guard itself refuses {len(refused)} of {len(looked):,}"
    if not refused:
        return Taught(pairs, manner), f"{sentence}."
    sentence += f", most often for '{reason}' ({shorten(refused[0].prompt, 60)!r})"
    if len(refused) > MOST_REFUSED * len(looked):
        raise ReelignError(
            f"{sentence}: they teach what is refused afterwards. Make pairs whose prompts say nothing that their "
            "rewrites do not keep, as `reelign pairs CAPTIONS` does, or choose another enhance.guard."
        )
    return Taught(pairs, manner), f"{sentence}."


def tokens_line(config: EnhanceConfig, language: Language, taught: Taught, renderer: VideoModel) -> tuple[Lengths, str]:
    """Whether questions can be asked, and answers fit where they are written and read."""
    (model, tokenizer), template = language, taught.manner.build_template()
    texts = [template.answer(pair.rewrite) for pair in taught.pairs]
    answers = [len(ids) + 1 for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]
    asked = max((pair.prompt for pair in taught.pairs), key=len)
    try:
        question = len(conversation_ids(tokenizer, template.messages(asked)))
    except TemplateError as error:
        raise ReelignError(
            f"the chat template of {config.language_model} refuses enhance.template={template.name} ({error}); choose "
            "another template or another model."
        ) from error
    cut = sum(length > config.tokens for length in answers)
    room = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
    sentence = (
        f"questions of {template.name} have up to {question} tokens, answers up to {max(answers)}, and {cut} of "
        f"{len(answers):,} answers are longer than enhance.tokens={config.tokens}"
    )
    if cut > MOST_CUT * len(answers):
        raise ReelignError(
            f"{sentence}: the model would learn answers that it cannot finish. Set enhance.tokens={max(answers)}."
        )
    if question + max(config.tokens, *answers) > room:
        raise ReelignError(
            f"{sentence}; together that is more than the {room} positions of {config.language_model}. Lower "
            "enhance.tokens, leave out the longest pairs or choose another model."
        )
    said = [sentence, *(f"of the rewrites {part}" for part in unread([p.rewrite for p in taught.pairs], renderer))]
    return Lengths(question, max(answers)), "; ".join(said) + "."


def _refused(pairs: Sequence[PromptPair], manner: Manner, language: Language | None) -> tuple[list[PromptPair], str]:
    """The pairs whose rewrite would not reach the generator, those of the commonest reason first, and that reason."""
    template, guard = manner.build_template(), manner.build_guard(similarity(*language) if language else None)
    found: list[tuple[PromptPair, str]] = []
    for pair in pairs:
        answer = template.answer(pair.rewrite)
        judged = guard.judge(pair.prompt, answer, True, template.parse(answer))
        if judged.outcome == "fallback":
            found.append((pair, judged.reason))
    if not found:
        return [], ""
    reason = Counter(why for _, why in found).most_common(1)[0][0]
    return [pair for pair, why in sorted(found, key=lambda refused: refused[1] != reason)], reason
