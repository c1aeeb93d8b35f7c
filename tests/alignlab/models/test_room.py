"""How long a text may be, by the positions that models of several families have."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from making import make_model
from transformers import AutoModelForCausalLM, BloomConfig, FalconConfig, GPT2Config, GPTJConfig, OPTConfig

from alignlab.models import check_room, room_of
from alignlab.models.room import Room

HEADS = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
FALCON = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64}
CONFIGS = {
    "gpt2": (GPT2Config(n_embd=8, n_layer=1, n_head=2, n_positions=64, **HEADS), Room(64, True)),
    "gptj": (GPTJConfig(n_embd=8, n_layer=1, n_head=2, rotary_dim=4, n_positions=64, **HEADS), Room(64, True)),
    "opt": (
        OPTConfig(
            hidden_size=8,
            word_embed_proj_dim=8,
            ffn_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            **HEADS,
        ),
        Room(64, True),
    ),
    "bloom": (BloomConfig(hidden_size=8, n_layer=1, n_head=2, **HEADS), None),
    "falcon": (FalconConfig(**FALCON, **HEADS), Room(64, False)),
    "falcon with alibi": (FalconConfig(**FALCON, alibi=True, **HEADS), None),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_room_is_a_table_a_bound_or_none(name: str) -> None:
    config, expected = CONFIGS[name]
    with torch.device("meta"):
        assert room_of(AutoModelForCausalLM.from_config(config)) == expected


@pytest.mark.parametrize(
    ("rope", "tokens", "alone"),
    [
        ({"rope_type": "linear", "factor": 8.0}, 2048, None),
        ({"rope_type": "dynamic", "factor": 8.0}, 2048, 256),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}, 1024, None),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}, 256, None),
        (
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
            256,
            None,
        ),
        (
            {
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [4.0] * 4,
                "original_max_position_embeddings": 64,
            },
            256,
            64,
        ),
    ],
)
def test_scaled_rotary_positions_reach_as_far_as_they_were_stretched(rope: Any, tokens: int, alone: Any) -> None:
    """Of linear, dynamic and yarn config.json's bound is what was there before; of llama3 and longrope what is now."""
    model = make_model(rope_parameters={"rope_theta": 10000.0, **rope})
    assert room_of(model) == Room(tokens, False, alone)


def test_what_outgrows_a_model_is_refused_or_said(caplog: Any) -> None:
    with torch.device("meta"):
        table = AutoModelForCausalLM.from_config(CONFIGS["gpt2"][0])
    check_room(table, 64, "max_length", "the longest row has")
    message = (
        r"^max_length: the longest row has 65 tokens, and the model has positions for 64, in a table; make it shor"
    )
    with pytest.raises(ValueError, match=message):
        check_room(table, 65, "max_length", "the longest row has")
    model = make_model(rope_parameters={"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0})
    with caplog.at_level(logging.WARNING, "alignlab.models.room"):
        for longest in (256, 300, 600):
            check_room(model, longest, "max_length", "the longest row has")
    batch = (
        "the longest row has {} tokens; beyond 256 this model scales the positions of a whole batch by its longest row"
    )
    said = [one.getMessage() for one in caplog.records]
    assert [batch.format(300) in said[0], batch.format(600) in said[1], len(said)] == [True, True, 3]
    assert said[2].endswith("600 tokens, and the model has positions for 512: beyond them it was not trained")
