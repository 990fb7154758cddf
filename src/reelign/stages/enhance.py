"""Stage 3, prompt enhancement (arXiv 2604.25427, section 3.3): a language model learns to say what users ask for as the
frozen generator likes it.

Two steps: supervised training on pairs (what users type, what the generator likes), then GRPO. There each rewrite is
rendered, and its clips are scored by the rewards of RLHF against the user's own words, never against the rewrite, which
could otherwise ask for something easier. All rewrites of a prompt start from the same noises, so that only the words
differ. A rewrite that the guard refuses is rendered as deployment would: with the user's words. Some rows of each group
are the user's words too; they count for what is average, and no token of them is learned from.

The trainers are trl's, which this file alone touches. Every random number of a step follows from the seed and the step,
so that a run which was killed goes on exactly.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback

from reelign.data.pairs import PromptPair
from reelign.enhancer.enhancer import Manner, save_enhancer
from reelign.enhancer.language_model import load_language_model
from reelign.errors import ReelignError
from reelign.files import write_atomically
from reelign.models.base import CARD
from reelign.models.load import ENHANCER
from reelign.sampling.noise import generator
from reelign.stages.context import StageContext
from reelign.stages.enhance_recipe import EnhanceConfig, RewardTraining, divided
from reelign.stages.rewriting import Rewriting
from reelign.train.track import Tracker

WHOLE = "whole.json"
"""Written last into a checkpoint of trl's; without it, it is none."""


def run_enhance(context: StageContext, config: EnhanceConfig) -> Path:
    """Train the enhancer and write the artifact to `context.folder / "model"`; resumes what was begun."""
    pairs = [pair for source in config.supervised.pairs for pair in source.read()]
    manner = config.manner(pairs)
    tracker = Tracker(context.folder, enabled=context.world.is_main, sinks=config.track)
    learnt = context.folder / "supervised" / "model"
    if not learnt.exists():
        train_on_pairs(context, config, pairs, manner, tracker, learnt)
        gc.collect()  # a trainer holds itself, and with it the weights and the optimiser on the device
        torch.cuda.empty_cache()
    if config.grpo is not None:
        rewarded = context.folder / "grpo" / "model"
        if not rewarded.exists():
            train_on_rewards(context, config, config.grpo, str(learnt), manner, tracker, rewarded)
        learnt = rewarded
    tracker.close()
    return _artifact(context, learnt)


def _artifact(context: StageContext, learnt: Path) -> Path:
    """The enhancer, and a card that names the generator which it is for."""
    target = context.folder / "model"
    if context.world.is_main:
        partial = target.with_name("model.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(learnt, partial / ENHANCER)
        write_atomically(partial / CARD, json.dumps({"kind": "enhancer", "base": context.parent}, indent=2))
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    context.world.barrier()
    return target


def train_on_pairs(
    context: StageContext,
    config: EnhanceConfig,
    pairs: Sequence[PromptPair],
    manner: Manner,
    tracker: Tracker,
    target: Path,
) -> None:
    """Supervised training: the likelihood of the answer, given the question."""
    step, template = config.supervised, manner.build_template()
    trl = trl_library()
    model, tokenizer = load_language_model(config.language_model, config.dtype, context.world.device)
    rows = [
        {
            "prompt": template.messages(pair.prompt),
            "completion": [{"role": "assistant", "content": template.answer(pair.rewrite)}],
        }
        for pair in pairs
    ]
    watch = Watch(context, tracker, "enhance: pairs", step.steps)
    with context.ledger.phase("enhance/supervised"):
        trainer = trl.SFTTrainer(
            model,
            trl.SFTConfig(
                **_arguments(context, config, target.parent, step.steps, step.lr),
                **_batches(step.batch_size, step.micro_batch, "enhance.supervised.batch_size", context),
                lr_scheduler_type="linear",
                max_length=None,
                save_steps=max(1, step.steps // 4),
            ),
            train_dataset=_dataset(rows),
            processing_class=tokenizer,
            peft_config=_adapters(config),
            callbacks=[watch],
        )
        _train(trainer, watch, context)
    _write(trainer, tokenizer, manner, target, context)


def train_on_rewards(
    context: StageContext,
    config: EnhanceConfig,
    grpo: RewardTraining,
    learnt: str,
    manner: Manner,
    tracker: Tracker,
    target: Path,
) -> None:
    """GRPO: rewrites whose clips score above their group's average become likelier."""
    trl = trl_library()
    model, tokenizer = load_language_model(learnt, config.dtype, context.world.device)
    rewriting = Rewriting(model, tokenizer, manner, grpo, context)
    weights = rewriting.weights
    watch = Watch(context, tracker, "enhance: rewards", grpo.steps, config.supervised.steps)
    conversations = [rewriting.template.messages(prompt) for prompt in rewriting.prompts]
    asked = {said[-1]["content"]: prompt for said, prompt in zip(conversations, rewriting.prompts, strict=True)}

    def rollout(questions: Sequence[list[dict[str, str]]], trainer: Any) -> dict[str, Any]:
        policy = trainer.accelerator.unwrap_model(trainer.model)
        policy.eval()
        found = rewriting.rollout(policy, [asked[question[-1]["content"]] for question in questions])
        policy.train()
        watch.notes = found.numbers
        mask = [[int(own)] * len(answer) for own, answer in zip(found.learned, found.answers, strict=True)]
        tokens = {"prompt_ids": found.questions, "completion_ids": found.answers, "logprobs": None, "env_mask": mask}
        return tokens | found.scores

    with context.ledger.phase("enhance/grpo") as cost:
        rows = grpo.prompts_per_step * grpo.group_size
        trainer = trl.GRPOTrainer(
            model,
            [_passed_on(name) for name in weights],
            trl.GRPOConfig(
                **_arguments(context, config, target.parent, grpo.steps, grpo.lr),
                **_batches(rows, grpo.micro_batch, "enhance.grpo: rewrites of a step", context),
                lr_scheduler_type="constant",
                save_steps=grpo.save_every,
                num_generations=grpo.group_size,
                max_completion_length=manner.tokens,
                temperature=grpo.temperature,
                beta=grpo.kl,
                loss_type="grpo",
                reward_weights=list(weights.values()),
                multi_objective_aggregation="normalize_then_sum",
                shuffle_dataset=False,  # the prompts come in the order of the stream that RLHF draws from
            ),
            train_dataset=_dataset([{"prompt": conversation} for conversation in conversations]),
            processing_class=tokenizer,
            peft_config=_adapters(config),
            callbacks=[watch],
            rollout_func=rollout,
        )
        try:
            _train(trainer, watch, context)
        finally:
            cost.clips, cost.nfe = rewriting.studio.rendered, rewriting.studio.nfe
    _write(trainer, tokenizer, manner, target, context)


def _passed_on(name: str) -> Callable[..., list[float]]:
    """A reward function of trl's that passes on what the rollout found."""

    def reward(**columns: Any) -> list[float]:
        return columns[name]

    reward.__name__ = name
    return reward


class Watch(TrainerCallback):
    """What a trainer of trl's tells the run, and what the run tells it.

    Attributes:
        notes: numbers of the step in progress, for the log.
        stopped: whether the user asked to stop.
    """

    def __init__(self, context: StageContext, tracker: Tracker, what: str, steps: int, first: int = 0) -> None:
        self.context, self.tracker, self.what, self.steps, self.first = context, tracker, what, steps, first
        self.notes: dict[str, float] = {}
        self.stopped = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Everything random in a step follows from seed, step and rank."""
        key = (self.what, self.context.seed, state.global_step, self.context.world.rank)
        torch.manual_seed(generator(*key).initial_seed())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop where the user asked to, with the state saved."""
        if self.context.stopping():
            self.stopped = control.should_save = control.should_training_stop = True

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """One row of `metrics.jsonl`, and the progress bar."""
        known = {"loss", "grad_norm", "learning_rate", "entropy", "kl"}
        numbers = {name: float(value) for name, value in (logs or {}).items() if name in known} | self.notes
        if "loss" not in numbers:  # trl's summary after the last step
            return
        self.tracker.log(self.first + state.global_step, **numbers)
        rewards = [value for name, value in self.notes.items() if name.startswith("reward/")]
        note = f"loss {numbers['loss']:.3f}" if not rewards else f"reward {sum(rewards) / len(rewards):.3f}"
        self.context.progress(self.what, state.global_step, self.steps, note)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint as whole."""
        if self.context.world.is_main:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}", state.global_step)


def seal(checkpoint: Path, step: int) -> None:
    """Say that everything of a checkpoint has been written."""
    write_atomically(checkpoint / WHOLE, json.dumps({"step": step}))


def _train(trainer: Any, watch: Watch, context: StageContext) -> None:
    """Train from the newest whole checkpoint, if there is one. What fails leaves the state of the last whole step.

    Raises:
        ReelignError: a reward failed, or the user asked to stop.
    """
    trainer.remove_callback(PrinterCallback)
    folder = Path(trainer.args.output_dir)
    found = {int(path.parent.name.split("-")[1]): path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")}
    newest = max(found, default=0)
    watch.tracker.resume(watch.first + newest)
    context.world.barrier()
    if newest == watch.steps:  # all but written: trl would train one step more
        trainer._load_from_checkpoint(str(found[newest]))
        return
    try:
        trainer.train(resume_from_checkpoint=str(found[newest]) if found else None)
    except ReelignError as error:
        step = trainer.state.global_step
        if step > 0 and not (folder / f"checkpoint-{step}" / WHOLE).exists():
            trainer._save_checkpoint(trainer.model, None)  # trl has no public way to save between steps
            watch.on_save(trainer.args, trainer.state, trainer.control)
        raise ReelignError(f"{error} Stopped after step {step}; the same command goes on from here.") from error
    if watch.stopped:
        raise ReelignError(
            f"stopped after step {trainer.state.global_step} as asked; the same command goes on from here."
        )


def _write(trainer: Any, tokenizer: Any, manner: Manner, target: Path, context: StageContext) -> None:
    """The trained model as an ordinary folder, adapters merged; the checkpoints have done their duty."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if context.world.is_main:
        save_enhancer(target, model, tokenizer, manner)
        for checkpoint in target.parent.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    context.world.barrier()


def _arguments(context: StageContext, config: EnhanceConfig, folder: Path, steps: int, lr: float) -> dict[str, Any]:
    """What both trainers are told."""
    return {
        "output_dir": str(folder),
        "max_steps": steps,
        "learning_rate": lr,
        "seed": context.seed,
        "use_cpu": context.world.device.type == "cpu",
        "bf16": config.dtype == "bfloat16",
        "gradient_checkpointing": config.gradient_checkpointing,
        "logging_steps": 1,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": context.world.device.type == "cuda",
        "ddp_find_unused_parameters": False,
    }


def _batches(rows: int, micro: int, what: str, context: StageContext) -> dict[str, int]:
    """Rows at once on a rank, and how often before the optimiser steps."""
    at_once, passes = divided(rows, micro, what, context.world.size)
    return {"per_device_train_batch_size": at_once, "gradient_accumulation_steps": passes}


def _adapters(config: EnhanceConfig) -> LoraConfig | None:
    if config.method == "full":
        return None
    lora = config.lora
    return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def trl_library() -> Any:
    """The library: an extra, because only this stage needs it.

    Raises:
        ReelignError: it is not installed.
    """
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # of `rollout_func`; the version is pinned
    try:
        import trl
    except ImportError as error:
        raise ReelignError(f"prompt enhancement needs trl ({error}): pip install 'reelign[enhance]'.") from error
    return trl


def _dataset(rows: list[dict[str, Any]]) -> Any:
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()  # they would tear the run's own
    return Dataset.from_list(rows)
