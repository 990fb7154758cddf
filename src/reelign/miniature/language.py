"""The miniature's language model: what `reelign enhance` fine-tunes. `reelign miniature train --parts enhancer`.

A stock Qwen3 of less than a million weights with one token a word. It is what a language model is before anyone tunes
it for the job: it knows the words of the world and what they mean, and it rewrites carelessly. In its training pairs
each thing that the user said is kept with a probability of `CARE`, and otherwise drawn anew.

Muon for the matrices inside the blocks, AdamW for the rest: AdamW alone was after 800 steps where this is after 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from reelign.miniature.build import word_tokenizer
from reelign.miniature.captions import full_caption, full_prompt, user_prompt, vocabulary
from reelign.miniature.optimisers import muon_and_adamw, set_rate
from reelign.miniature.world import VALUES, Scene, scenes

CARE = 0.8
ECHOES = 0.4
"""Share of training texts in which a full caption is asked about."""
STEPS, BATCH, FLAT = 800, 64, 0.6
USER, ANSWER = "<user>", "<prompt>"
CHAT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}" + USER + " {{ message['content'] }} "
    "{% elif message['role'] == 'assistant' %}" + ANSWER + " {{ message['content'] }}</s>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + ANSWER + "{% endif %}"
)
"""A chat template: `<user> ball going left <prompt> a large ...</s>`. What a system says is not in its vocabulary."""


def build_language_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, lower case; words outside the world become `<unk>`."""
    found = PreTrainedTokenizerFast(
        tokenizer_object=word_tokenizer(USER, ANSWER),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[USER, ANSWER],
        model_max_length=512,
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],
    )
    found.chat_template = CHAT
    return found


def build_language_model() -> Qwen3ForCausalLM:
    """Four blocks of width 128."""
    config = Qwen3Config(
        vocab_size=len(vocabulary()) + 5,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config)


def careless_pair(pool: Sequence[Scene], generator: np.random.Generator) -> tuple[str, str]:
    """What a user asks for, of a scene of `pool`, and a caption that keeps most of it."""
    scene = pool[int(generator.integers(len(pool)))]
    asked = full_prompt(scene, generator) if generator.random() < ECHOES else user_prompt(scene, generator)
    said = scene
    for name, values in VALUES.items():
        if name not in asked.stated or generator.random() >= CARE:
            said = replace(said, **{name: values[int(generator.integers(len(values)))]})
    return asked.text, full_caption(_allowed(said, scene), generator)


def _allowed(said: Scene, scene: Scene) -> Scene:
    """`said`, with the asked colour, shape and motion when its own are held out."""
    return replace(said, colour=scene.colour, shape=scene.shape, motion=scene.motion) if said.held_out else said


def train_language(out: Path, progress: Callable[[str, int, int, float], None] | None = None) -> Path:
    """Train it from nothing, seeded, in about three minutes; `out/enhancer` is an ordinary transformers folder."""
    folder = out / "enhancer"
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(0)
    tokenizer: Any = build_language_tokenizer()
    model = build_language_model()
    muon, adamw = muon_and_adamw(model, ".layers.")
    pool = scenes(held_out=False)
    for step in range(STEPS):
        for optimizer, rate in ((muon, 0.02), (adamw, 2e-3)):
            set_rate(optimizer, rate, step, STEPS, FLAT)
        generator = np.random.default_rng((21, step))
        texts = [_conversation(*careless_pair(pool, generator)) for _ in range(BATCH)]
        words = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids, mask = words["input_ids"], words["attention_mask"]
        logits = model(input_ids=ids, attention_mask=mask).logits
        targets = ids.masked_fill(mask == 0, -100)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten())
        muon.zero_grad()
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        muon.step()
        adamw.step()
        if progress is not None:
            progress("enhancer", step + 1, STEPS, float(loss.detach()))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _conversation(prompt: str, answer: str) -> str:
    """What `CHAT` makes of a question and its answer; thousands of them are slow in a template."""
    return f"{USER} {prompt} {ANSWER} {answer}</s>"
