"""Flat rows through the kernels score as padded ones, over architectures; those that cannot are refused, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from making import make_model
from transformers import AutoModelForCausalLM

from alignlab.data import ScoredSequence, attention_plan, layout_fields
from alignlab.scoring import forward, planned
from alignlab.scoring import probe as probing
from alignlab.scoring.checks import attention_calls
from alignlab.scoring.kernels import capped_attention
from alignlab.scoring.packing import FLAT, TREES, model_inputs
from alignlab.scoring.probe import probe

PAGE = Path(__file__).resolve().parents[3] / "docs" / "packing.md"
WORDS = {"vocab_size": 300}
SHAPE = {**WORDS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPE |= {"num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1}
SHAPE |= {"bos_token_id": 1}
WIDE = {**SHAPE, "head_dim": 8}
SLIDING = {**WIDE, "sliding_window": 8}
OLD = {**WORDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LATENT = {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
LATENT |= {"n_group": 1, "topk_group": 1, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8}
LATENT |= {"qk_nope_head_dim": 16, "v_head_dim": 16, "first_k_dense_replace": 1}
OPT = {**WORDS, "hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
EXACT: dict[str, dict[str, Any]] = {
    "Arcee": SHAPE,
    "Cohere": SHAPE,
    "Cohere2": {**SHAPE, "sliding_window": 8, "num_hidden_layers": 4},
    "DeepseekV3": {**SHAPE, **LATENT},
    "Ernie4_5": SHAPE,
    "Exaone4": {**SHAPE, "sliding_window": 8, "num_hidden_layers": 4},
    "Gemma": WIDE,
    "Gemma2": {**SLIDING, "attn_logit_softcapping": 0.5},
    "Gemma3Text": {**SLIDING, "num_hidden_layers": 6},
    "Glm": WIDE,
    "Glm4": WIDE,
    "GPT2": OLD,
    "GPTBigCode": OLD,
    "GPTNeoX": SHAPE,
    "GptOss": {**SLIDING, "num_local_experts": 4},
    "Granite": SHAPE,
    "Helium": WIDE,
    "HunYuanDenseV1": WIDE,
    "Llama": SHAPE,
    "Llama4Text": {**WIDE, "intermediate_size_mlp": 64, "num_local_experts": 2, "attention_chunk_size": 8}
    | {"num_hidden_layers": 4},
    "Mistral": SLIDING,
    "Mixtral": {**SHAPE, "num_local_experts": 4},
    "Olmo": SHAPE,
    "Olmo2": SHAPE,
    "Olmo3": {**SHAPE, "sliding_window": 8, "num_hidden_layers": 4},
    "Olmoe": {**SHAPE, **EXPERTS},
    "OPT": {**OPT, "word_embed_proj_dim": 32},
    "Persimmon": SHAPE,
    "Phi": SHAPE,
    "Phi3": {**SHAPE, "sliding_window": 8},
    "Qwen2": SHAPE,
    "Qwen3": WIDE,
    "Qwen3Moe": {**WIDE, **EXPERTS, "moe_intermediate_size": 32},
    "SeedOss": WIDE,
    "SmolLM3": {**SHAPE, "num_hidden_layers": 4},
    "Starcoder2": {**SHAPE, "sliding_window": 8},
    "VaultGemma": {**SLIDING, "attn_logit_softcapping": 0.5},
}
LOST = "the model changes the attention mask that it is given, or drops the plan beside it"
NEVER = "calls attention 0 times"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Bloom": ({**WORDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "raises ValueError"),
    "CodeGen": ({**OLD, "rotary_dim": 4}, NEVER),
    "Falcon": ({**WORDS, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "alibi": False}, NEVER),
    "GPTJ": ({**OLD, "rotary_dim": 4}, NEVER),
    "Lfm2": ({**SHAPE, "layer_types": ["conv", "full_attention"]}, "layers of type conv"),
    "Nemotron": (SHAPE, LOST),
    "Qwen3_5Text": (
        {**WIDE, "layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        "layers of type linear_attention",
    ),
    "StableLm": (SHAPE, LOST),
}
RAGGED = [(11, 9, 5), (3, 14, 2), (20, 1, 7), (8, 8, 8), (1, 6, 3), (16, 4, 12)]


def model_of(name: str, values: dict[str, Any]) -> Any:
    """A small model with weights large enough that a wrong mask shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(getattr(transformers, f"{name}Config")(**values))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3
    planned.keep_caps(model)
    return model.eval()


def layout(mode: Any, **more: Any) -> dict[str, Any]:
    tokens = torch.Generator().manual_seed(0)
    fields: dict[str, list[ScoredSequence]] = {"chosen": [], "rejected": []}
    for lengths in RAGGED:
        prompt, *completions = (torch.randint(2, 300, (n,), generator=tokens).numpy() for n in lengths)
        for field, one in zip(fields, completions, strict=True):
            fields[field].append(ScoredSequence(prompt, one, one > 50))
    return {**layout_fields(fields, 0, mode), **more}


def run(model: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores, and the gradient of a random weighting of them."""
    model.zero_grad()
    logps = forward.score(model, inputs)["logps"]
    (logps * torch.randn(logps.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return logps.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", EXACT)
def test_kernels_score_as_padded_rows(name: str) -> None:
    """Scores within 2e-6 nats, gradients within 2e-6 of the largest; one call a layer; and plain rows stay right."""
    model = model_of(name, EXACT[name])
    plain, plain_gradient = run(model, layout("padded"))
    model.set_attn_implementation(TREES)
    with attention_calls(TREES) as calls:
        packed, gradient = run(model, layout("flat", kernels=True))
    assert calls == list(range(model.config.num_hidden_layers))
    torch.testing.assert_close(packed, plain, rtol=0, atol=2e-6)
    scale = plain_gradient.abs().max()
    torch.testing.assert_close(gradient / scale, plain_gradient / scale, rtol=0, atol=2e-6)
    with torch.no_grad():
        again = forward.score(model, layout("padded"))["logps"]
    torch.testing.assert_close(again, plain, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_kernels_cannot_run_is_refused(name: str) -> None:
    """By name or by the count of calls, and never silently wrong."""
    values, reason = REFUSED[name]
    model = model_of(name, values)
    model.set_attn_implementation(TREES)
    if reason == NEVER:
        with attention_calls(TREES) as calls:
            run(model, layout("flat", kernels=True))
        assert calls == []
    else:
        with pytest.raises(ValueError, match="too many values to unpack" if name == "Bloom" else reason):
            run(model, layout("flat", kernels=True))
    model = model_of(name, values)
    probe(model)
    assert model.config._attn_implementation != TREES


def test_the_page_names_them_all() -> None:
    text = PAGE.read_text(encoding="utf-8")
    listed = text.split("Exact through the kernels: ")[1].split(".")[0].replace("\n", " ").split(", ")
    assert [name.strip("` ") for name in listed] == list(EXACT)
    refused = text.split("| refused | why |")[1].split("\n\n")[0]
    assert [line.split("`")[1] for line in refused.splitlines()[2:]] == list(REFUSED)


def test_both_kinds_of_checkpointing_keep_the_plan() -> None:
    model = make_model()
    model.set_attn_implementation(TREES)
    _, plain = run(model, layout("flat", kernels=True))
    model.train()
    for reentrant in (True, False):
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
        with attention_calls(TREES) as calls:
            _, again = run(model, layout("flat", kernels=True))
        assert len(calls) == 4, "each layer once more in backward"
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-6)


def test_counts_decide_on_the_cpu() -> None:
    """A tree of 100 + 50 + 30 under a mask: 180^2 cells; without: 150^2 / 2 + 100 * 30 + 30^2 / 2 in two sequences."""
    assert planned.saved_cells([[100, 50, 30]]) == (180**2 - 150**2 / 2 - 3000 - 450) / 2
    inputs = {"input_ids": torch.zeros(1, 1), "plan": torch.zeros(1), "trees": [[0, 0, 240, 150, 150]]}
    assert planned.uses_kernels(inputs, torch.float32), "as in Capybara"
    assert planned.uses_kernels({**inputs, "trees": [[0, 0, 80, 200, 200]]}, torch.float32), "as in UltraFeedback"
    assert not planned.uses_kernels({**inputs, "trees": [[0, 0, 130, 45, 45]]}, torch.float32), "as in HH-RLHF"
    assert not planned.uses_kernels({**inputs, "input_ids": torch.zeros(2, 1)}, torch.float32), "more than one row"


@pytest.mark.parametrize(("dtype", "expected"), [(torch.bfloat16, True), (torch.float16, True), (torch.float32, False)])
def test_half_precision_decides_elsewhere(dtype: torch.dtype, expected: bool) -> None:
    inputs = {"input_ids": torch.zeros(1, 1, device="meta"), "plan": torch.zeros(1), "trees": [[0, 0, 3, 2, 1]]}
    assert planned.uses_kernels(inputs, dtype) is expected


def test_no_mask_is_made_or_kept() -> None:
    """What backward keeps of attention has no two dimensions of the row's length."""
    model = make_model()
    model.set_attn_implementation(TREES)
    inputs = layout("flat", kernels=True)
    kept: list[tuple[int, ...]] = []

    def keep(one: torch.Tensor) -> torch.Tensor:
        kept.append(tuple(one.shape))
        return one

    row = inputs["input_ids"].shape[1]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        forward.score(model, inputs)
    assert [shape for shape in kept if shape.count(row) > 1] == []
    assert model_inputs(model, inputs)["attention_mask"].shape == (1, 1, 1, 1)


def test_dropout_is_refused() -> None:
    model = make_model(attention_dropout=0.1)
    assert probe(model) == ("flat", "")
    assert model.config._attn_implementation != TREES
    model.set_attn_implementation(TREES)
    with pytest.raises(ValueError, match="attention with dropout"):
        run(model.train(), layout("flat", kernels=True))


@pytest.mark.parametrize("kind", ["opt", "biogpt"])
def test_dropout_is_found_under_its_other_name(kind: str) -> None:
    """OPT and BioGPT call it ``dropout``: unseen, a run would stop at the first long row."""
    names = {"opt": "attention_dropout", "biogpt": "attention_probs_dropout_prob"}
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"opt": {"ffn_dim": 64, "word_embed_proj_dim": 32}, "biogpt": {"intermediate_size": 64}}[kind]
    for rate, attention in ((0.0, TREES), (0.1, FLAT)):
        config = transformers.AutoConfig.for_model(kind, **sizes, **{names[kind]: rate})
        model = AutoModelForCausalLM.from_config(config)
        assert probe(model) == ("flat", "")
        assert model.config._attn_implementation == attention


def test_flash_attention_by_name_becomes_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would fault the device if it were given a mask of trees: nothing else is tried."""
    model = make_model()
    model.config._attn_implementation_internal = "flash_attention_2"
    monkeypatch.setattr(probing, "_takes_kernels", lambda *_: True)
    tried = probing._candidates(model, torch.device("cuda"))
    assert tried == [probing.Candidate("flat", TREES, counted=True, half=True)]
    model.config._attn_implementation_internal = "sdpa"
    tried = probing._candidates(model, torch.device("cuda"))
    assert [(one.mode, one.attention) for one in tried] == [("flat", TREES), ("rows", "sdpa")]
    monkeypatch.undo()
    assert [one.attention for one in probing._candidates(model, torch.device("cuda"))] == ["sdpa"], "fp32 on a GPU"


def test_the_precision_of_a_run_that_is_over_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerate's state outlives its trainer; float32 weights have kernels on a GPU only where the caller says so."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    model, device = make_model(), torch.device("cuda")
    AcceleratorState._reset_state(reset_partial_state=True)  # that of an earlier test's trainer, whatever it was
    try:
        assert Accelerator(mixed_precision="bf16", cpu=True).mixed_precision == "bf16"
        assert [one.attention for one in probing._candidates(model, device)] == ["sdpa"]
        assert [one.attention for one in probing._candidates(model, device, half=True)] == [TREES, "sdpa"]
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


# ---- attention scores with a soft-cap ------------------------------------------------------------------------------

ON_A_GPU = probing.Candidate("flat", TREES, counted=True, half=True)


def capped_model(cap: float = 0.5) -> Any:
    return model_of("Gemma2", {**SLIDING, "attn_logit_softcapping": cap})


def test_a_capped_model_stays_eager_on_the_cpu_and_is_bound_for_kernels_on_a_gpu() -> None:
    """Short rows have no kernel on a CPU: the same twin is refused for it that passes for a GPU in half precision."""
    model = capped_model()
    assert probe(model) == ("rows", "")
    assert model.config._attn_implementation == "eager"
    on_a_cpu = probing.Candidate("flat", TREES, counted=True)
    assert "attention with softcap" in str(probing._twin_fails(model, on_a_cpu, torch.device("cpu"), 0))
    assert probing._twin_fails(model, ON_A_GPU, torch.device("cpu"), 0) == ""


def test_a_cap_is_not_left_to_sdpa(caplog: pytest.LogCaptureFixture) -> None:
    """transformers 5.19 runs Gemma 2 through SDPA, which drops the cap."""
    capped, plain = capped_model(), model_of("Gemma2", {**SLIDING, "attn_logit_softcapping": None})
    for model in (capped, plain):
        model.config._attn_implementation = "sdpa"
        planned.keep_caps(model)
    assert (capped.config._attn_implementation, plain.config._attn_implementation) == ("eager", "sdpa")
    assert "Gemma2ForCausalLM caps its attention scores, which SDPA does not: it runs eagerly" in caplog.text


@pytest.mark.parametrize("fault", ["cap", "window", "completion"])
def test_wrong_capped_attention_is_refused(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap that is lost, a window that is lost, completions that see each other: thousands of roundings off."""

    def wrong(q: Any, k: Any, v: Any, plan: Any, *, cap: float, window: int | None, **options: Any) -> torch.Tensor:
        if fault == "cap":
            cap = 1e6
        if fault == "completion":
            plan = attention_plan([[plan.tokens]])
        return capped_attention(q, k, v, plan, cap=cap, window=None if fault == "window" else window, **options)

    monkeypatch.setattr(probing, "_verdicts", {})
    monkeypatch.setattr(planned, "capped_attention", wrong)
    reason = str(probing._twin_fails(capped_model(), ON_A_GPU, torch.device("cpu"), 0))
    assert "scores otherwise than in plain ones" in reason
    found = float(reason.split(" by ")[1].split(" nats")[0])
    assert found > 1000 * float(reason.split("(rounding: ")[1].split(",")[0])


def test_generated_text_of_a_capped_model_keeps_its_cap() -> None:
    """Plain rows, padded on the left, and single tokens after a cache: the logits are those of eager attention."""
    model = capped_model(0.1)
    ids = torch.randint(2, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    found = []
    for attention in ("eager", TREES):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            first = model(ids[:, :9], attention_mask=mask[:, :9], use_cache=True)
            after = [
                model(ids[:, i : i + 1], attention_mask=mask[:, : i + 1], past_key_values=first.past_key_values).logits
                for i in range(9, 12)
            ]
        found.append(torch.cat([first.logits[:, 4:], *after], 1))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=2e-5)


def test_soft_caps_beside_what_they_cannot_have_are_refused() -> None:
    model, query = capped_model(), torch.zeros(1, 4, 12, 8)
    plans: planned.Plans = {None: attention_plan([[5, 4, 3]])}
    layer = model.model.layers[0].self_attn
    for options, said in (({"s_aux": torch.zeros(4)}, "softcap and sinks"), ({"dropout": 0.1}, "dropout")):
        with pytest.raises(ValueError, match=f"attention with {said}"):
            planned.planned_attention(layer, query, query, query, plans, {}, softcap=1.0, **options)


def lists_layout(mode: Any, **more: Any) -> dict[str, Any]:
    """Lists of 2, 7, 4 and 5 completions, in seven fields with holes."""
    tokens = torch.Generator().manual_seed(0)
    fields: dict[str, list[ScoredSequence | None]] = {str(k): [] for k in range(7)}
    for size, length in ((2, 11), (7, 3), (4, 20), (5, 1)):
        prompt = torch.randint(2, 300, (length,), generator=tokens).numpy()
        for k, field in enumerate(fields.values()):
            one = torch.randint(2, 300, (3 + 2 * k,), generator=tokens).numpy()
            field.append(ScoredSequence(prompt, one, one > 20) if k < size else None)
    return {**layout_fields(fields, 0, mode), **more}


@pytest.mark.parametrize("chunked", [False, True])
def test_lists_of_two_to_seven_score_as_padded_rows(*, chunked: bool) -> None:
    """In rows, and in a flat row by masks and by kernels; holes have no token, no score and no gradient."""
    model = model_of("Qwen2", SHAPE)
    with patch.object(forward, "worthwhile", return_value=chunked):
        plain, plain_gradient = run(model, lists_layout("padded"))
        scale = plain_gradient.abs().max()
        for mode, more in (("rows", {}), ("flat", {"kernels": False}), ("flat", {"kernels": True})):
            made = lists_layout(mode, **more)
            assert sorted(len(tree) - 3 for tree in made["trees"]) == [2, 4, 5, 7]
            assert (made["shares"] > 0).sum() == made["shares"].numel() == sum(sum(tree[2:]) for tree in made["trees"])
            model.set_attn_implementation("sdpa" if mode == "rows" else TREES)
            packed, gradient = run(model, made)
            torch.testing.assert_close(packed, plain, rtol=0, atol=5e-6)
            torch.testing.assert_close(gradient / scale, plain_gradient / scale, rtol=0, atol=5e-6)
    assert (plain[~made["mask"]] == 0).all()
