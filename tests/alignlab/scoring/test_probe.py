"""The probe takes every correct model, however deep and in whatever dtype, and none that is wrong in packed rows."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from making import make_model
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from alignlab.scoring import forward, packing
from alignlab.scoring import probe as probing
from alignlab.scoring.checks import Trial, attention_calls, leak, miscalled
from alignlab.scoring.packing import FLAT
from alignlab.scoring.probe import Candidate, choose_layout, probe
from alignlab.scoring.rounding import jolted, rounding_unit
from alignlab.scoring.twin import CAP, REACH, NoTwin, build_twin, twin_config

TINY = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
CHUNKED = {"intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 8, "num_hidden_layers": 4}
ROWS, FLATS = Candidate("rows", "sdpa"), Candidate("flat", FLAT, counted=True)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """No verdict of another test is believed, and every line is said anew."""
    monkeypatch.setattr(probing, "_verdicts", {})
    probing._say_once.cache_clear()


def tiny(config: str, **values: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(getattr(transformers, config)(**{**TINY, **values})).eval()


def deep(layers: int, spread: float, dtype: torch.dtype) -> Any:
    """A narrow Llama of many layers whose logits have such a standard deviation; its rounding errors are large."""
    torch.manual_seed(0)
    config = LlamaConfig(**{**TINY, "hidden_size": 64, "head_dim": 16, "num_hidden_layers": layers})
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=2 * 64**-0.5)
    with torch.no_grad():
        model.lm_head.weight *= spread / 2
    return model.to(dtype).eval()


def trial_of(model: Any, candidate: Candidate) -> Trial:
    return Trial(model, model, 0, candidate.mode, candidate.attention, "sdpa")


# ---- correct models ------------------------------------------------------------------------------------------------

DEEP = [(24, 1.7, torch.bfloat16, 0.15), (24, 3.4, torch.bfloat16, 0.15), (24, 5.6, torch.bfloat16, 0.15)]


@pytest.mark.parametrize(("layers", "spread", "dtype", "yesterday"), [*DEEP, (32, 5.4, torch.float32, 5e-5)])
def test_deep_models_are_packed(
    layers: int, spread: float, dtype: torch.dtype, yesterday: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Correct Llamas as on a GPU, where rows are tried alone; a limit in nats, as it was, refuses each of them."""
    monkeypatch.setattr(probing, "_candidates", lambda *_: [ROWS])
    model = deep(layers, spread, dtype)
    trial = trial_of(model, ROWS)
    with torch.no_grad():
        assert (trial.scores() - trial.scores(plain=True)).abs().max() > yesterday
    assert probe(model) == ("rows", "")


def test_a_pad_token_beyond_the_vocabulary_of_twins_costs_no_twin(caplog: pytest.LogCaptureFixture) -> None:
    """Qwen pads with token 151,643, and a twin has a thousand."""
    caplog.set_level(logging.INFO)
    assert probe(tiny("LlamaConfig", vocab_size=2000), 1999) == ("flat", "")
    assert "having no small twin" not in caplog.text


def test_products_of_few_bits_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32 weights under bf16 autocast, off by far more than fp32: measured, so taken; the twin is in true fp32."""
    monkeypatch.setattr(probing, "_candidates", lambda *_: [ROWS])
    model = deep(24, 3.4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert rounding_unit(model) == torch.finfo(torch.bfloat16).eps
        assert probe(model) == ("rows", "")
    assert rounding_unit(model) < 1e-5
    half = make_model(num_hidden_layers=1).half()
    assert rounding_unit(half) == torch.finfo(torch.float16).eps


BIG: list[tuple[str, Candidate]] = [
    ("LlamaConfig", FLATS),
    ("GPT2Config", FLATS),
    ("Gemma2Config", Candidate("rows", "eager")),
    ("GptOssConfig", Candidate("rows", "eager")),
    ("DeepseekV3Config", FLATS),
    ("Llama4TextConfig", FLATS),
]


@pytest.mark.parametrize(("config", "candidate"), BIG)
def test_twins_of_whole_models_are_small(config: str, candidate: Candidate) -> None:
    """The default sizes are those of real models: 0.1 to 400 billion parameters; their twins run, and agree."""
    values = getattr(transformers, config)()
    values._attn_implementation = "sdpa" if candidate is FLATS else candidate.attention
    model_class = type(AutoModelForCausalLM.from_config(twin_config(values)))
    base = object.__new__(model_class)
    nn.Module.__init__(base)
    base.config = values
    twin = probing._twin(base, candidate, 0).base
    assert sum(one.numel() for one in twin.parameters()) < 50_000_000
    kinds = getattr(values, "layer_types", None)
    assert set(getattr(twin.config, "layer_types", None) or ()) == set(kinds or ())
    assert probing._twin_fails(base, candidate, CPU, 0) == ""


def test_a_twin_has_reaches_and_caps_that_bite_and_the_rest_as_it_was() -> None:
    """Window and cap are cut, heads' width and rotary embeddings are not; the model's own config stays."""
    config = transformers.Gemma2Config()
    small = twin_config(config)
    assert (small.sliding_window, small.attn_logit_softcapping, small.vocab_size) == (REACH, CAP, 1000)
    assert small.layer_types == ["sliding_attention", "full_attention"]
    assert (small.head_dim, small.rope_parameters) == (config.head_dim, config.rope_parameters)
    assert small.hidden_size == 256
    assert (config.sliding_window, config.attn_logit_softcapping, config.hidden_size) == (4096, 50.0, 2304)


def test_random_numbers_and_precision_stay_as_they_were() -> None:
    """The probe draws from generators of its own, and puts the precision of products back."""
    model = make_model()
    torch.manual_seed(7)
    before = torch.get_rng_state()
    torch.set_float32_matmul_precision("high")
    try:
        assert probe(model) == ("flat", "")
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_jolt_moves_every_embedding_by_one_rounding() -> None:
    """By the unit, up or down, the same at every call; afterwards nothing is left."""
    model = make_model().double()
    ids, table = torch.arange(1, 7)[None], model.model.embed_tokens.weight.detach()[1:7]  # 0 pads: zeros
    moved = []
    for _ in range(2):
        with torch.no_grad(), jolted(model, 3, unit=0.5):
            moved.append(model.model.embed_tokens(ids)[0] / table - 1)
    assert torch.equal(moved[0], moved[1])
    torch.testing.assert_close(moved[0].abs(), torch.full_like(moved[0], 0.5), rtol=0, atol=1e-12)
    assert 0.3 < (moved[0] > 0).double().mean() < 0.7
    assert torch.equal(model.model.embed_tokens(ids)[0], table)


# ---- planted faults ------------------------------------------------------------------------------------------------


def no_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "layer_windows", lambda config: (None, None))


def chosen_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rejected completion sees the chosen one."""

    def causal(lengths: list[int], window: Any = None, device: Any = None) -> torch.Tensor:
        return torch.ones(sum(lengths), sum(lengths), dtype=torch.bool).tril()

    monkeypatch.setattr(packing, "tree_mask", causal)


def positions_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every completion begins one position too late."""
    inputs = packing.model_inputs

    def late(model: Any, layout: Any) -> dict[str, Any]:
        made = inputs(model, layout)
        for row, start, prompt, *lengths in layout.get("trees", ()):
            made["position_ids"][row, start + prompt : start + prompt + sum(lengths)] += 1
        return made

    monkeypatch.setattr(forward, "model_inputs", late)


def cap_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def uncapped(module: nn.Module, *args: Any, softcap: float | None = None, **options: Any) -> Any:
        return packing.flat_attention(module, *args, **options)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, FLAT, uncapped)
    monkeypatch.setattr(probing, "_candidates", lambda *_: [FLATS])


def window_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and chunks reach one position less."""
    tree_mask = packing.tree_mask

    def short(lengths: list[int], window: Any = (None, None), device: Any = None) -> torch.Tensor:
        return tree_mask(lengths, tuple(one and one - 1 for one in window), device)

    monkeypatch.setattr(packing, "tree_mask", short)


Plant = Callable[[pytest.MonkeyPatch], None]
FAULTS: list[tuple[str, dict[str, Any], Plant]] = [
    ("LlamaConfig", {}, chosen_seen),
    ("LlamaConfig", {}, positions_off),
    ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4}, positions_off),
    ("MistralConfig", {"sliding_window": 8}, no_windows),
    ("MistralConfig", {"sliding_window": 4096}, window_short),
    ("Gemma3TextConfig", {"sliding_window": 4096, "num_hidden_layers": 6}, window_short),
    ("Llama4TextConfig", CHUNKED, no_windows),
    ("Llama4TextConfig", CHUNKED, window_short),
    ("Gemma2Config", {}, cap_swallowed),
]


@pytest.mark.parametrize(("config", "values", "plant"), FAULTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planted_faults_are_refused(
    config: str, values: dict[str, Any], plant: Plant, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the dtype of the model: by the twin, in true fp32, by a thousand times what rounding does and more."""
    model = tiny(config, **values).to(dtype)
    plant(monkeypatch)
    mode, reason = probe(model)
    assert mode == "padded"
    assert "scores otherwise than in plain ones" in reason
    found = float(reason.split(" by ")[1].split(" nats")[0])
    assert found > 1000 * float(reason.split("(rounding: ")[1].split(",")[0])
    assert probe(model)[0] == "padded", "a verdict that is kept is the same"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_in_the_model_itself_is_found(dtype: torch.dtype) -> None:
    """A hook on this one model, of which the twin knows nothing, adds a ten-thousandth of the mean over the row."""
    model = deep(2, 1.7, dtype)

    def mix(_: nn.Module, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-4 * output.mean(1, keepdim=True)

    model.model.layers[0].mlp.register_forward_hook(mix)
    mode, reason = probe(model)
    assert mode == "padded"
    assert "lets a completion see tokens of another" in reason or "scores otherwise" in reason
    if dtype == torch.bfloat16:
        assert "lets a completion see tokens of another" in reason


def test_a_fault_of_the_model_itself_is_found() -> None:
    """A wrapper on this one model gives every token a later position: as a patched rotary embedding might."""
    model = deep(2, 3.4, torch.bfloat16)
    rotary = model.model.rotary_emb.forward
    model.model.rotary_emb.forward = lambda x, position_ids: rotary(x, torch.arange(x.shape[1])[None])
    mode, reason = probe(model)
    assert mode == "padded"
    assert "scores otherwise than in plain ones" in reason


def test_without_a_backward_changed_tokens_show_the_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose kernels have no gradient: other tokens elsewhere must leave the same bits."""
    monkeypatch.setattr(torch.autograd, "grad", lambda *_: 1 / 0)
    assert probe(make_model()) == ("flat", "")
    chosen_seen(monkeypatch)
    trial = trial_of(make_model(), ROWS)
    with torch.no_grad():
        assert "lets a completion see tokens of another" in leak(trial)


# ---- calls of attention --------------------------------------------------------------------------------------------


def test_a_layer_that_does_not_call_attention_is_found() -> None:
    """Falcon's attention is its own: a function chosen by name is never called. Llama's two layers call it twice."""
    with torch.no_grad():
        assert miscalled(trial_of(make_model(), FLATS)) == ""
        with attention_calls(FLAT) as calls:
            trial_of(make_model(), FLATS).scores()
    assert calls == [0, 1]
    assert ALL_ATTENTION_FUNCTIONS[FLAT] is packing.flat_attention
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 300}
    falcon = AutoModelForCausalLM.from_config(transformers.FalconConfig(**sizes))
    found = probing._twin_fails(falcon, FLATS, CPU, 0)
    assert found == "calls attention 0 times in a forward, not once in each of 2 layers"


def test_layers_that_call_attention_twice_or_not_at_all_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Called again, attention would be right and the count wrong: what it counts is not what it was told of."""
    model = make_model()
    twice = model.model.layers[0].self_attn.forward

    def again(*args: Any, **options: Any) -> Any:
        twice(*args, **options)
        return twice(*args, **options)

    model.model.layers[0].self_attn.forward = again
    monkeypatch.setattr(probing, "_candidates", lambda *_: [FLATS])
    mode, reason = probe(model)
    assert mode == "padded"
    assert "calls attention 3 times in a forward, not once in each of 2 layers" in reason


# ---- what cannot be run --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attention", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn"])
def test_flash_attention_is_never_given_a_mask(attention: str, caplog: pytest.LogCaptureFixture) -> None:
    """It would read it as lengths and fault the device: the model is not run at all, and the log says why."""
    model = make_model()
    model.config._attn_implementation = attention
    model.forward = lambda *_, **__: pytest.fail("the model was run")
    assert choose_layout("auto", [model], 0) == "padded"
    assert f"attn_implementation: {attention}, which takes no mask of trees" in caplog.text


def test_the_device_is_met_after_the_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin that fails on the CPU never reaches the device; one that passes is then run there."""
    model = make_model()
    elsewhere = torch.device("meta")
    assert str(probing._twin_fails(model, ROWS, elsewhere, 0)).startswith("raises "), "it holds no numbers"
    probing._verdicts.clear()
    chosen_seen(monkeypatch)
    monkeypatch.setattr(nn.Module, "to", lambda *_: pytest.fail("the twin was moved"))
    assert "scores otherwise than in plain ones" in str(probing._twin_fails(model, ROWS, elsewhere, 0))


@pytest.fixture
def no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise NoTwin("the code of this model wants a file")

    monkeypatch.setattr(probing, "build_twin", refuse)


@pytest.mark.usefixtures("no_twin")
def test_without_a_twin_the_model_stands_in(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken if it is right, with its windows cut to three positions meanwhile; one line says so."""
    with caplog.at_level(logging.INFO, "alignlab.scoring.probe"):
        model = tiny("MistralConfig", sliding_window=8)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data *= 3
        assert probe(model) == ("flat", "")
    line = "the probe runs MistralForCausalLM itself, having no small twin of it: the code of this model wants a file"
    assert [record.message for record in caplog.records] == [line]
    assert model.config.sliding_window == 8
    no_windows(monkeypatch)
    assert "scores otherwise than in plain ones" in probe(model)[1]


def test_a_twin_too_large_is_not_built() -> None:
    """On the meta device it is counted first: no memory is taken."""
    config = twin_config(LlamaConfig(), narrow=False)
    with pytest.raises(NoTwin, match=r"it would have 41\d,\d{3},\d{3} parameters \(allowed 50,000,000\)"):
        build_twin(transformers.LlamaForCausalLM, config, "sdpa")


def test_adapters_and_quantised_configs_are_probed() -> None:
    """With LoRA the whole wrapped model runs; of a quantised one the twin is whole."""
    lora = get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"]))
    assert probe(lora) == ("flat", "")
    config = LlamaConfig(**TINY, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert not hasattr(twin_config(config), "quantization_config")
