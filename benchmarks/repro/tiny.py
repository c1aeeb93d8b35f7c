"""The tiny language model of the reproductions: its supervised start, preference training, and what it does."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PrinterCallback, TrainerCallback
from transformers.utils import logging as transformers_logging
from world import LENGTH, TOPICS, WORDS, Row, World

from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.config.arguments import PreferenceConfig
from alignlab.evaluation import log_likelihoods, sequence_kl
from alignlab.sampling import generate, texts
from alignlab.training.trainer import PreferenceTrainer

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
START = {"rows": 9600, "steps": 300, "rate": 3e-3, "batch": 32}
PROMPTS = 512


def quiet() -> None:
    """Keeps many small runs from filling the screen, and to one core."""
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    logging.getLogger("alignlab").setLevel(logging.ERROR)


@cache
def tokenizer() -> Any:
    """Returns a tokenizer of one token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    entries = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", *TOPICS, *WORDS)
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(entries)}, unk_token="<|pad|>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    extra = ["<|user|>", "<|assistant|>"]
    result = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<|pad|>", eos_token="<|end|>", additional_special_tokens=extra
    )
    result.chat_template = CHAT_TEMPLATE
    return result


def untrained(seed: int) -> Any:
    """Returns a Llama of two layers with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    words = tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(words), max_position_embeddings=64, initializer_range=0.08, **SIZES, **ids)
    )


@cache
def start(seed: int, folder: Path, *, quick: bool = False) -> Any:
    """Returns the model of a seed after a supervised start on the language itself, made once and kept in ``folder``."""
    path = folder / f"start_{seed}"
    if not path.is_dir():
        steps = 5 if quick else int(START["steps"])
        rows = World(seed).demonstrations(int(START["rows"]) if not quick else 160)
        model = untrained(seed)
        settings = {"learning_rate": START["rate"], "per_device_train_batch_size": START["batch"]}
        fit(model, rows, {"name": "sft", "data": "labelled"}, seed, folder, steps, **settings)
        model.save_pretrained(path)
    return AutoModelForCausalLM.from_pretrained(path)


def fit(
    model: Any,
    rows: Sequence[Row],
    loss: Mapping[str, Any],
    seed: int,
    folder: Path,
    steps: int,
    *,
    watch: Callable[[int, Any], None] | None = None,
    peft_config: Any = None,
    eval_rows: Sequence[Row] | None = None,
    **settings: Any,
) -> PreferenceTrainer:
    """Trains ``model`` in place with the package's trainer; ``watch`` is called with (step, model) after every step.

    All rows are equally long, so the padded layout wastes nothing and is quicker than packing at this size.
    """
    values = {
        "output_dir": str(folder / "trainer"),
        "score_cache_dir": str(folder / "scores"),
        "max_steps": steps,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "per_device_train_batch_size": 16,
        "per_device_eval_batch_size": 64,
        "layout": "padded",
        "seed": seed,
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = PreferenceTrainer(
        model,
        PreferenceConfig(**(values | settings)),
        loss,
        train_dataset=list(rows),
        eval_dataset=None if eval_rows is None else list(eval_rows),
        processing_class=tokenizer(),
        peft_config=peft_config,
        callbacks=[] if watch is None else [_Watch(watch)],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


class _Watch(TrainerCallback):  # type: ignore[misc]
    def __init__(self, see: Callable[[int, Any], None]) -> None:
        self.see = see

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.see(state.global_step, others["model"])


def tuned(base: Any, rows: Sequence[Row], loss: Mapping[str, Any], *others: Any, **more: Any) -> Any:
    """Returns a copy of ``base``, trained as ``fit`` does."""
    model = copy.deepcopy(base)
    fit(model, rows, loss, *others, **more)
    return model


def measure(model: Any, reference: Any, world: World, prompts: Sequence[str]) -> Row:
    """Returns what sampled answers to the prompts are like.

    ``reward_0`` to ``reward_2``: mean reward by each objective. ``kl``: KL(model || reference) of whole answers in
    nats, exact at each token. ``entropy``: of whole answers in nats, estimated by -log p of the samples.
    ``distinct_4``: different sequences of four words among all. ``formed``: share of answers of the right length.
    """
    words = tokenizer()
    conversations = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = generate(model, words, conversations, sample=True, max_new_tokens=LENGTH + 4, seed=world.seed)
    written = [text.split() for text in texts(words, answers)]
    rewards = torch.tensor([world.rewards(" ".join(one)) for one in written]).mean(0)
    fours = [tuple(one[at : at + 4]) for one in written for at in range(len(one) - 3)]
    return {
        **{f"reward_{objective}": float(value) for objective, value in enumerate(rewards)},
        "kl": float(sequence_kl(model, reference, answers, words.pad_token_id).mean()),
        "entropy": -float(log_likelihoods(model, answers, words.pad_token_id).mean()),
        "distinct_4": len(set(fours)) / max(len(fours), 1),
        "formed": sum(len(one) == LENGTH for one in written) / len(written),
    }
