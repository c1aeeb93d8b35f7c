"""A tokenizer, a tiny model and rows, made from nothing."""

from __future__ import annotations

import random

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
    TrainingArguments,
)

NEWER_CHECKPOINTING = pytest.mark.skipif(
    "activation_checkpointing" not in TrainingArguments.__dataclass_fields__,
    reason="this transformers knows gradient_checkpointing alone",
)

WORDS = ["the", "a", "red", "blue", "green", "cat", "dog", "bird", "sees", "likes"]
WORDS += ["finds", "big", "small", "old", "new", "stone", "house", "tree", "river", "song"]


def sentence(rng: random.Random, words: int) -> str:
    """Returns so many random words."""
    return " ".join(rng.choice(WORDS) for _ in range(words))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer on random sentences."""
    rng = random.Random(0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([sentence(rng, 8) for _ in range(200)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(seed: int = 0, outputs: int = 0, **changes: object) -> torch.nn.Module:
    """Returns a two-layer Llama with random weights; with ``outputs`` a reward model of so many."""
    torch.manual_seed(seed)
    values = {
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": False,
    }
    auto = AutoModelForSequenceClassification if outputs else AutoModelForCausalLM
    labels = {"num_labels": outputs} if outputs else {}
    model: torch.nn.Module = auto.from_config(LlamaConfig(**{**values, **labels, **changes}))
    return model


def make_rows(count: int, seed: int = 0, groups: tuple[str, ...] = ()) -> list[dict[str, object]]:
    """Returns preference rows of ragged lengths; with ``groups``, of unequal sizes."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        row: dict[str, object] = {
            "prompt": sentence(rng, rng.randint(2, 6)) + " :",
            "chosen": f" good {sentence(rng, rng.randint(1, 7))} {index}",
            "rejected": f" bad {sentence(rng, rng.randint(1, 7))} {index}",
        }
        if groups:
            row["group"] = groups[min(rng.randrange(2 * len(groups)), len(groups) - 1)]
        rows.append(row)
    return rows
