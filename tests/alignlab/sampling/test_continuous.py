"""Continuous batching as an engine: its log-probabilities are ours, and scoring works on as before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from making import make_rows

from alignlab.config import ModelOptions
from alignlab.data import read_prompts
from alignlab.sampling.build import build_engine, check_engine
from alignlab.sampling.options import SampleOptions
from alignlab.sampling.policy import Policy


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    from making import make_model, make_tokenizer

    path: Path = tmp_path_factory.mktemp("model")
    make_model(initializer_range=0.3).save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    return Policy(ModelOptions(str(path)))


def test_its_logprobs_are_ours(policy: Policy) -> None:
    """32 answers, summed log-probabilities within 1e-4 (ours are rounded to four decimals); one shard, one seed."""
    options = SampleOptions(samples=4, max_new_tokens=10, batch_size=32)
    prompts = read_prompts(make_rows(8), policy.tokenizer).prompts
    engine: Any = build_engine("continuous", policy, options, "")
    before = policy.logps(prompts[0].ids, [[5, 6, 7]])
    answers = engine.draw(prompts)
    assert [len(row) for row in answers] == [4] * 8
    assert len(engine.gaps) == 32
    assert max(engine.gaps) < 1e-4
    assert len({tuple(one.ids or ()) for one in answers[0]}) > 1
    again: Any = build_engine("continuous", policy, options, "")
    assert again.draw(prompts) == answers
    assert policy.logps(prompts[0].ids, [[5, 6, 7]]) == before
    assert engine.of == {"batch_size": 32}  # it is part of what answers depend on


def test_a_temperature_of_0_takes_the_likeliest_token(policy: Policy) -> None:
    options = SampleOptions(samples=1, max_new_tokens=10, temperature=0.0)
    prompts = read_prompts(make_rows(6), policy.tokenizer).prompts
    theirs, ours = (build_engine(name, policy, options, "").draw(prompts) for name in ("continuous", "transformers"))
    assert theirs == ours


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("continous", "engine: expected transformers, continuous or an address .*; did you mean continuous?"),
        ({"name": "continuous", "workers": 2}, r"engine\.workers: unknown option of continuous; allowed are none"),
        (
            {"name": "http://x/v1", "wrokers": 2},
            r"engine\.wrokers: unknown option of http://x/v1; allowed are attempts",
        ),
    ],
)
def test_what_is_no_engine(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_engine(spec)
