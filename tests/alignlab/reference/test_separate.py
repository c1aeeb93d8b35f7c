"""References with weights of their own: where the policy's starting point is found again."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from making import make_model

from alignlab.cache import fingerprint_model
from alignlab.config import ModelOptions
from alignlab.models import load_model
from alignlab.reference.separate import Loading, ModelFromPath

COMMIT, OTHER = 40 * "a", 40 * "b"


@pytest.fixture
def hub(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's local cache: of one model the commit that "main" is, and another one with other weights."""
    cache = tmp_path / "hub"
    home = cache / "models--someone--tiny"
    shutil.copytree(model_path, home / "snapshots" / COMMIT)
    make_model(1).save_pretrained(home / "snapshots" / OTHER)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)
    (home / "refs" / "next").write_text(OTHER)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    return cache


@pytest.mark.parametrize(("revision", "commit"), [("main", COMMIT), ("next", OTHER)])
def test_a_policy_of_the_hub_is_loaded_again_from_its_snapshot(revision: str, commit: str, hub: Path) -> None:
    """ZeRO-3 holds but shards of the policy; of a hub id the very commit is read again, from the local cache alone."""
    load = partial(load_model, ModelOptions("someone/tiny", revision=revision))
    policy = load()
    loading = Loading(load, torch.device("cpu"), torch.float32, revision=revision)
    again = ModelFromPath.start_of(policy, None, loading, moves=False)
    assert again.path == str(hub / "models--someone--tiny" / "snapshots" / commit)
    assert again.from_policy
    assert again.fingerprint("float32") == fingerprint_model(policy, adapter=None, compute_dtype="float32")
    assert all(
        torch.equal(one, other) for one, other in zip(again.loaded().parameters(), policy.parameters(), strict=True)
    )


@pytest.mark.parametrize("revision", ["main", "next"])
def test_a_reference_of_the_hub_has_the_name_of_the_weights_that_are_loaded(revision: str, hub: Path) -> None:
    """The fingerprint is that of the revision that is run, whether files or memory were asked."""
    load = partial(load_model, ModelOptions("unused", revision=revision))
    given = ModelFromPath("someone/tiny", Loading(load, torch.device("cpu"), torch.float32, revision=revision))
    named = given.fingerprint("float32")
    assert named == fingerprint_model(given.loaded(), adapter=None, compute_dtype="float32")


def test_a_policy_that_was_never_saved_cannot_be_loaded_again(hub: Path) -> None:
    load = partial(load_model, ModelOptions("unused"))
    with pytest.raises(ValueError, match=r"the policy \(LlamaForCausalLM\) was not loaded from a folder or the hub"):
        ModelFromPath.start_of(make_model(), None, Loading(load, torch.device("cpu")), moves=False)
