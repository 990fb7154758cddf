"""A causal language model of transformers that answers conversations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from safetensors import SafetensorError
from torch.nn.functional import cosine_similarity
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from reelign.enhancer.template import Messages
from reelign.errors import ReelignError

MINIATURE = Path(__file__).parents[1] / "miniature" / "assets" / "enhancer"
BATCH = 64


def load_language_model(name: str, dtype: str = "float32", device: torch.device | str = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer: the word 'miniature', a transformers folder or a hub id.

    Raises:
        ReelignError: nothing is there, it is no causal language model, or its tokenizer has no chat template.
    """
    source: Path | str = MINIATURE if name == "miniature" else name
    if not Path(source).is_dir() and (str(source).count("/") != 1 or str(source).startswith((".", "/", "~"))):
        raise ReelignError(
            f"there is no language model {name!r}. Give the word 'miniature', a transformers folder or a hub id such "
            "as Qwen/Qwen3-4B-Instruct-2507."
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), output_loading_info=True
        )
        model, found = loaded
        if found["missing_keys"]:  # transformers would fill in random numbers
            raise ValueError(f"it has no weights for {sorted(found['missing_keys'])[0]}.")
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, HfHubHTTPError, HFValidationError) as error:
        first = str(error).strip().splitlines()[0]
        advice = "Copy or download the folder again." if Path(source).is_dir() else f"Download it: hf download {name}"
        raise ReelignError(f"cannot load the language model {name}: {first} {advice}") from error
    if tokenizer.chat_template is None:
        raise ReelignError(
            f"the language model {name} has no chat template, so it cannot be asked anything; choose one that was "
            "tuned for chat, or save a template with its tokenizer."
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def conversation_ids(tokenizer: Any, messages: Messages) -> list[int]:
    """The tokens of a conversation, up to where the answer begins. Models that think aloud are told not to."""
    found = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
    )
    return list(found["input_ids"])


@torch.no_grad()
def answer_ids(
    model: Any, tokenizer: Any, questions: Sequence[Sequence[int]], most: int, temperature: float = 0.0
) -> list[list[int]]:
    """One answer to each question, as tokens with the one that ends it, if it came.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: its tokenizer.
        questions: tokens of each conversation.
        most: tokens of an answer at most.
        temperature: of sampling from torch's global generator; 0 takes the likeliest token.
    """
    ends = _ends(model, tokenizer)
    how: dict[str, Any] = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    config = GenerationConfig(
        max_new_tokens=most,
        eos_token_id=sorted(ends),
        pad_token_id=tokenizer.pad_token_id,
        top_k=0,  # what is not said here would come from the model's own settings
        top_p=1.0,
        repetition_penalty=1.0,
        **how,
    )
    answers = []
    for start in range(0, len(questions), BATCH):
        rows = [list(question) for question in questions[start : start + BATCH]]
        width = max(map(len, rows))
        ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(row)) + row for row in rows], device=model.device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
        for said in model.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, width:].tolist():
            end = next((place for place, token in enumerate(said) if token in ends), len(said) - 1)
            answers.append(said[: end + 1])
    return answers


def finished(model: Any, tokenizer: Any, answer: Sequence[int]) -> bool:
    """Whether an answer came to its own end."""
    return bool(answer) and answer[-1] in _ends(model, tokenizer)


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end an answer."""
    own = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}


def similarity(model: Any, tokenizer: Any) -> Callable[[str, Sequence[str]], float]:
    """How near a word is to the nearest of some words, by the model's own input embeddings: a cosine in [-1, 1]."""
    table = model.get_input_embeddings().weight

    @torch.no_grad()
    def embedded(word: str) -> torch.Tensor:
        ids = tokenizer(" " + word, add_special_tokens=False)["input_ids"]
        return table[torch.tensor(ids, device=table.device)].float().mean(0) if ids else table.new_zeros(table.shape[1])

    def nearest(word: str, others: Sequence[str]) -> float:
        if not others:
            return -1.0
        rows = torch.stack([embedded(other) for other in others])
        return float(cosine_similarity(embedded(word)[None], rows).max())

    return nearest
