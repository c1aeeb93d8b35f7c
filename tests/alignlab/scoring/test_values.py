"""Values of a reward model: packed rows as its own class says of each text alone, gradients, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from making import make_model
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from alignlab import scoring
from alignlab.data import ScoredSequence, layout_fields
from alignlab.scoring import checks
from alignlab.scoring import probe as probing

TINY = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "windows": ("Qwen2Config", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "gpt_neox": ("GPTNeoXConfig", {"rotary_pct": 0.5}),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "capped": ("Gemma2Config", {"sliding_window": 6, "attn_logit_softcapping": 5.0}),
    "experts": ("MixtralConfig", {"num_local_experts": 4}),
}
RAGGED = [(11, 9, 5), (3, 14, 2), (20, 1, 7), (8, 8, 8), (2, 6, 3)]


def reward_model(name: str = "llama", outputs: int = 1) -> Any:
    """Returns a random model whose values have a spread of about one."""
    config, changes = MODELS[name]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**TINY, **changes}, num_labels=outputs)
    model = AutoModelForSequenceClassification.from_config(made).eval()
    torch.nn.init.normal_(model.score.weight, std=32**-0.5)
    return model


def texts() -> dict[str, list[ScoredSequence]]:
    """Ragged pairs; one answer ends in the pad token, which another has in its middle."""
    random = np.random.default_rng(0)
    fields: dict[str, list[ScoredSequence]] = {"chosen": [], "rejected": []}
    for prompt_length, *lengths in RAGGED:
        prompt = random.integers(2, 300, prompt_length)
        for field, length in zip(fields, lengths, strict=True):
            fields[field].append(ScoredSequence(prompt, random.integers(2, 300, length), np.ones(length, dtype=bool)))
    fields["chosen"][0].completion[-2:] = 0
    fields["rejected"][0].completion[2] = 0
    return fields


def alone(model: Any, fields: dict[str, list[ScoredSequence]]) -> torch.Tensor:
    """What the model's own class says of every text by itself, ``[F, N, K]``."""
    rows = [
        [model(input_ids=torch.tensor(np.concatenate([one.prompt, one.completion]))[None]).logits[0] for one in field]
        for field in fields.values()
    ]
    return torch.stack([torch.stack(row) for row in rows])


def gradient_of(model: Any, values: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(0))
    model.zero_grad()
    (values * weights).sum().backward()
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_packed_values_are_those_of_each_text_alone(name: str) -> None:
    """Within 1e-5, gradients within 1e-4 of the largest; packed rows hold fewer tokens than plain ones."""
    model, fields = reward_model(name), texts()
    expected = alone(model, fields)
    assert expected.std() > 0.3, "values that hardly differ would prove nothing"
    slopes = gradient_of(model, expected)
    mode = scoring.choose_layout("auto", [model], 0)
    assert mode == ("rows" if name == "capped" else "flat")
    for one in ("padded", mode):
        layout = layout_fields(fields, 0, one, row_length=60)
        found = scoring.values(model, layout)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        gradient = gradient_of(model, found)
        torch.testing.assert_close(gradient / slopes.abs().max(), slopes / slopes.abs().max(), rtol=0, atol=1e-4)
    assert int((layout["shares"] > 0).sum()) == 107  # each prompt once; 151 tokens without sharing


def test_values_of_several_outputs_and_through_an_adapter() -> None:
    model, fields = reward_model(outputs=3), texts()
    layout = layout_fields(fields, 0, "padded")
    torch.testing.assert_close(scoring.values(model, layout), alone(model, fields), rtol=0, atol=1e-5)
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, init_lora_weights=False))
    torch.testing.assert_close(scoring.values(adapted, layout), alone(adapted, fields), rtol=0, atol=1e-5)
    assert scoring.values(adapted.bfloat16(), layout).dtype == torch.float32


def test_a_wrong_mask_is_found_in_a_reward_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention that sees a whole row is refused by the same checks that a language model goes through."""
    monkeypatch.setattr(probing, "_verdicts", {})
    model = reward_model()
    trial = checks.Trial(model, model, 0, "rows", "sdpa", "sdpa")
    assert checks.difference(trial, exact=True) == ""
    assert checks.leak(trial) == ""

    def whole_row(_: Any, __: Any, layout: dict[str, Any], ___: Any) -> torch.Tensor:
        rows, width = layout["input_ids"].shape
        return torch.ones(width, width, dtype=torch.bool).tril().expand(rows, 1, width, width)

    monkeypatch.setattr("alignlab.scoring.packing._mask", whole_row)
    assert "scores otherwise than in plain ones" in checks.difference(trial, exact=True)
    assert "lets a completion see tokens of another" in checks.leak(trial)


def test_what_has_no_value_head_is_refused() -> None:
    assert scoring.value_head(make_model()) is None
    with pytest.raises(ValueError, match="LlamaForCausalLM has no value head `score`"):
        scoring.values(make_model(), layout_fields(texts(), 0))
