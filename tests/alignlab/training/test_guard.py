"""The guard before the first step: what rounding does to the policy is allowed to its reference, and no more."""

from __future__ import annotations

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from making import make_model, make_rows
from torch import Tensor, nn

from alignlab import losses
from alignlab.config import PreferenceConfig
from alignlab.data import ScoredSequence, layout_fields
from alignlab.scoring import score
from alignlab.training import guard
from alignlab.training.guard import Quiet, check_reference, quiet_scores
from alignlab.training.trainer import PreferenceTrainer

BF16: dict[str, Any] = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture(autouse=True)
def said_anew() -> None:
    guard._say_noise.cache_clear()


def deep(seed: int = 0) -> Any:
    """Twelve narrow layers with weights that make rounding errors as large as a real model's."""
    model = make_model(seed, num_hidden_layers=12, hidden_size=64)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=2 * 64**-0.5)
    return model.eval()


def layout(mode: Any, tokens: int) -> Any:
    """Eight pairs of answers of so many tokens."""
    random = np.random.default_rng(0)
    fields: dict[str, list[ScoredSequence]] = {"chosen": [], "rejected": []}
    for _ in range(8):
        prompt = random.integers(2, 300, 9)
        for name in fields:
            fields[name].append(ScoredSequence(prompt, random.integers(2, 300, tokens), np.ones(tokens, dtype=bool)))
    return layout_fields(fields, 0, mode)


def scores(model: Any, mode: Any, tokens: int) -> Tensor:
    with torch.no_grad():
        return score(model, layout(mode, tokens))["logps"]


def hold(quiet: Quiet, reference: Tensor, **options: Any) -> None:
    """Holds a policy's scores against a reference, as the trainer does."""
    sides = [losses.Scored(quiet.logps[n], torch.ones_like(quiet.logps[n], dtype=torch.bool)) for n in (0, 1)]
    for side, ref in zip(sides, reference, strict=True):
        side.ref_logps = ref
    options = {"tolerance": None, "from_policy": True, "stop": True} | options
    check_reference(losses.Pairs(sides[0], sides[1]), quiet, torch.arange(8), None, **options)


def quiet_of(model: Any, mode: Any, tokens: int) -> Quiet:
    made = layout(mode, tokens)
    inputs = {"completions": made, "real": torch.ones(8, dtype=torch.bool)}
    return quiet_scores(lambda one: score(one, made)["logps"], model, inputs)


def test_what_is_allowed_by_hand() -> None:
    """3 (0.01 + 0.06 / n): 0.21 nats for one token, 0.06 a token for six; no tokens count as one."""
    quiet = Quiet(torch.zeros(2, 3, 6), ("chosen", "rejected"), torch.ones(3, dtype=torch.bool), 0.01, 0.06)
    assert quiet.allowed(torch.tensor([1, 6, 0])).tolist() == pytest.approx([0.21, 0.06, 0.21])


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("tokens", [1, 12])
def test_a_deep_policy_in_half_precision_is_its_own_reference(tokens: int, *, half: bool) -> None:
    """Scored in packed rows for the cache and in padded ones in training; another model is refused all the same.

    Answers of one token are off by more than the 0.1 nats that were allowed once.
    """
    model = deep().bfloat16() if half else deep()
    with nullcontext() if half else torch.autocast(**BF16):
        quiet, reference = quiet_of(model, "padded", tokens), scores(model, "rows", tokens)
    distance = (quiet.logps - reference).abs().mean(-1).max().item()
    assert distance > (0.1 if tokens == 1 else 0.02)
    hold(quiet, reference)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight *= 2
    with nullcontext() if half else torch.autocast(**BF16):  # another one: it keeps the weights that it has cast
        reference = scores(model, "rows", tokens)
    with pytest.raises(ValueError, match=r"differ by up to .* on \d of 8 rows: row \d"):
        hold(quiet, reference)


def test_a_reference_in_fewer_bits_is_refused() -> None:
    """An fp32 policy moves by 1e-4 nats at most, its scores under bf16 autocast by a thousand times as much."""
    model = deep()
    quiet = quiet_of(model, "padded", 6)
    assert 0 < quiet.mean < quiet.largest < 1e-3
    hold(quiet, scores(model, "rows", 6))
    with torch.autocast(**BF16):
        reference = scores(model, "padded", 6)
    with pytest.raises(ValueError, match=r"on 8 of 8 rows: .*one computed in fewer bits"):
        hold(quiet, reference)
    hold(quiet, reference, tolerance=10.0)
    with pytest.raises(ValueError, match=r"\(allowed 1e-09\)"):
        hold(quiet, scores(model, "rows", 6), tolerance=1e-9)


def trainer(tokenizer: Any, folder: Path, model: Any, **options: Any) -> PreferenceTrainer:
    args = PreferenceConfig(
        output_dir=str(folder),
        max_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        **options,
    )
    return PreferenceTrainer(model, args, "dpo", make_rows(8), None, tokenizer)


NOISE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"neftune_noise_alpha": 50.0}, {}),
    ({"disable_dropout": False}, {"attention_dropout": 0.3}),
]


@pytest.mark.parametrize(("options", "shape"), NOISE)
def test_noise_in_training_is_said_and_does_not_trip_the_guard(
    options: dict[str, Any], shape: dict[str, Any], tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """NEFTune, or dropout that was asked for: the first loss is not ln 2, the reference is still the policy."""
    model = make_model(**shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3 if parameter.ndim > 1 else 1
    run = trainer(tokenizer, tmp_path, model, **options)
    with caplog.at_level(logging.INFO, "alignlab.training.guard"):
        run.train()
    said = [record.message for record in caplog.records if record.name == "alignlab.training.guard"]
    line = "dropout or NEFTune moves the policy's scores in training; the guard before the first step leaves it out"
    assert said == [line], "once, though the step has two micro-batches"
    assert run.state.log_history[0]["loss"] != pytest.approx(math.log(2), abs=1e-5)


def test_a_healthy_run_says_nothing_and_leaves_the_model_as_it_was(
    tokenizer: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ln 2 under bf16 autocast; no hook is left, and random numbers are those of a run without a guard."""
    run = trainer(tokenizer, tmp_path, make_model(), bf16=True)
    with caplog.at_level(logging.INFO, "alignlab.training.guard"):
        run.train()
    assert not [record for record in caplog.records if record.name == "alignlab.training.guard"]
    assert run.state.log_history[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert not run.model.model.embed_tokens._forward_hooks
