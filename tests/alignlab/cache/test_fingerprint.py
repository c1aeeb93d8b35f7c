"""The fingerprint changes with every bit that scores depend on, with nothing else, and is the same from files."""

import copy
import json
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
)

from alignlab.cache.fingerprint import fingerprint_model, fingerprint_tensors
from alignlab.cache.fingerprint_files import fingerprint_path

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS = {
    "llama": LlamaConfig(**SMALL),
    "qwen2-tied": Qwen2Config(**SMALL, num_key_value_heads=1, tie_word_embeddings=True),
    "gpt2-tied": GPT2Config(vocab_size=64, n_positions=32, n_embd=32, n_layer=2, n_head=2),
    "mistral": MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=16),
}


def build(config, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype).eval()


def in_memory(model, **options):
    return fingerprint_model(model, compute_dtype="float32", **options)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    build(CONFIGS["llama"]).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_files_equal_memory_in_every_load_dtype(name, dtype, tmp_path):
    build(CONFIGS[name]).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert fingerprint_path(tmp_path, dtype, "float32") == in_memory(loaded)


def test_dtype_auto_is_that_of_the_config(tmp_path):
    build(CONFIGS["llama"], torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    found = [fingerprint_path(tmp_path, dtype, "float32") for dtype in ("auto", "bfloat16", torch.bfloat16)]
    assert found == [in_memory(loaded)] * 3


@pytest.mark.parametrize("name", ["llama", "gpt2-tied"])
def test_save_and_load_round_trip_keeps_it(name, tmp_path):
    model = build(CONFIGS[name])
    model.save_pretrained(tmp_path / "elsewhere")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere", dtype=torch.float32)
    assert in_memory(loaded) == in_memory(model) == in_memory(copy.deepcopy(model))


def test_sharded_files_equal_the_single_file(tmp_path):
    model = build(CONFIGS["qwen2-tied"])
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    found = {fingerprint_path(tmp_path / name, torch.bfloat16, "bfloat16") for name in ("one", "many")}
    assert len(found) == 1
    assert None not in found


def test_one_flipped_bit_changes_it_in_memory_and_in_files(llama_folder, tmp_path):
    model = build(CONFIGS["llama"])
    before = in_memory(model)
    weight = model.model.layers[1].mlp.down_proj.weight.data.view(torch.int32)
    weight[3, 5] ^= 1
    after = in_memory(model)
    model.save_pretrained(tmp_path)
    assert after != before
    assert fingerprint_path(llama_folder, torch.float32, "float32") == before
    assert fingerprint_path(tmp_path, torch.float32, "float32") == after
    weight[3, 5] ^= 1
    assert in_memory(model) == before


def test_weight_dtype_compute_dtype_and_extra_count(llama_folder):
    found = [
        fingerprint_path(llama_folder, torch.float32, torch.float32),
        fingerprint_path(llama_folder, torch.bfloat16, torch.float32),
        fingerprint_path(llama_folder, torch.float32, torch.bfloat16),
        fingerprint_path(llama_folder, torch.float32, torch.float32, {"scorer": "last"}),
    ]
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rms_norm_eps", 1e-5),
        ("attn_logit_softcapping", 50.0),
        ("sliding_window", 0),
        ("hidden_act", "gelu"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
    ],
)
def test_settings_of_the_forward_count(field, value):
    config = copy.deepcopy(CONFIGS["llama"])
    before = in_memory(build(config))
    setattr(config, field, value)
    assert in_memory(build(config)) != before


def test_settings_that_change_no_score_do_not_count():
    model = build(CONFIGS["llama"])
    before = in_memory(model)
    model.config.use_cache = False
    model.config.pad_token_id = 7
    model.config.attention_dropout = 0.5
    model.config._name_or_path = "somewhere/else"
    model.config._attn_implementation = "eager"
    model.config.option_of_a_newer_library = None
    model.train()
    assert in_memory(model) == before


def test_tied_head_in_the_files_is_counted_once(tmp_path):
    """A checkpoint that stores the tied head twice loads as the same model, and has the same fingerprint."""
    build(CONFIGS["qwen2-tied"]).save_pretrained(tmp_path)
    before = fingerprint_path(tmp_path, torch.float32, "float32")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint_path(tmp_path, torch.float32, "float32") == before
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint_path(tmp_path, torch.float32, "float32") == before
    assert in_memory(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) == before


def test_tied_head_that_differs_in_the_files_is_what_the_loader_makes_of_it(tmp_path):
    build(CONFIGS["qwen2-tied"]).save_pretrained(tmp_path)
    before = fingerprint_path(tmp_path, torch.float32, "float32")
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, file, metadata={"format": "pt"})
    after = fingerprint_path(tmp_path, torch.float32, "float32")
    assert after != before
    assert in_memory(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) == after


def test_untying_the_head_counts():
    model = build(CONFIGS["qwen2-tied"])
    before = in_memory(model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    assert in_memory(model) != before


def test_old_names_and_leftover_buffers_in_the_files_do_not_matter(tmp_path):
    """GPT-2's hub checkpoint has no ``transformer.`` prefix and holds the causal mask, which is not loaded."""
    build(CONFIGS["gpt2-tied"]).save_pretrained(tmp_path)
    before = fingerprint_path(tmp_path, torch.float32, "float32")
    file = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 32, 32)
    save_file(tensors, file, metadata={"format": "pt"})
    assert fingerprint_path(tmp_path, torch.float32, "float32") == before
    assert in_memory(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)) == before


def test_non_contiguous_weights_are_hashed_by_value():
    weight = torch.arange(6.0).reshape(2, 3)
    assert fingerprint_tensors({"w": weight.T.contiguous().T}, {}) == fingerprint_tensors({"w": weight}, {})
    assert fingerprint_tensors({"w": weight.T}, {}) != fingerprint_tensors({"w": weight.reshape(3, 2)}, {})


class TestWhenFilesCannotTell:
    """None, with the reason in the log: the caller then loads the model."""

    def reason(self, folder, caplog, dtype=torch.float32):
        with caplog.at_level(logging.INFO, logger="alignlab.cache.fingerprint_files"):
            assert fingerprint_path(folder, dtype, "float32") is None
        return caplog.records[-1].getMessage()

    def test_experts_that_are_fused_while_loading(self, tmp_path, caplog):
        build(MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2)).save_pretrained(tmp_path)
        assert "converted while loading" in self.reason(tmp_path, caplog)

    def test_missing_weight(self, tmp_path, caplog):
        build(CONFIGS["llama"]).save_pretrained(tmp_path)
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["lm_head.weight"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert "lm_head.weight is not in the files" in self.reason(tmp_path, caplog)

    def test_other_shape(self, llama_folder, tmp_path, caplog):
        build(CONFIGS["llama"]).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 65}))
        assert "has shape [64, 32], the model has [65, 32]" in self.reason(tmp_path, caplog)

    def test_no_safetensors(self, tmp_path, caplog):
        CONFIGS["llama"].save_pretrained(tmp_path)
        assert "model.safetensors is not there" in self.reason(tmp_path, caplog)

    def test_adapter(self, tmp_path, caplog):
        get_peft_model(build(CONFIGS["llama"]), LoraConfig(r=2)).save_pretrained(tmp_path)
        assert "adapter" in self.reason(tmp_path, caplog)

    def test_modules_kept_in_float32(self, llama_folder, caplog, monkeypatch):
        monkeypatch.setattr(LlamaForCausalLM, "_keep_in_fp32_modules_strict", ["norm"])
        assert "stay in float32 when loaded as torch.bfloat16" in self.reason(llama_folder, caplog, torch.bfloat16)

    def test_not_a_model(self, tmp_path, caplog):
        assert "no known causal language model" in self.reason(tmp_path, caplog)


class TestAdapters:
    def lora(self, model, **options):
        torch.manual_seed(1)
        return get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, **options))

    @pytest.mark.parametrize(
        "options",
        [
            {"target_modules": "all-linear"},
            {"target_modules": ["q_proj", "embed_tokens"]},
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            {"target_modules": ["v_proj"], "trainable_token_indices": [1, 2]},
            {"target_modules": ["v_proj"], "use_dora": True},
        ],
        ids=["linear", "embedding", "modules_to_save", "tokens", "dora"],
    )
    @pytest.mark.parametrize("name", ["llama", "qwen2-tied"])
    def test_adapter_off_is_the_bare_base(self, name, options):
        bare = in_memory(build(CONFIGS[name]))
        model = self.lora(build(CONFIGS[name]), **options)
        assert in_memory(model) == bare
        assert in_memory(model, adapter="default") != bare

    def test_adapter_tensors_and_scaling_count_but_not_its_name(self):
        first = in_memory(self.lora(build(CONFIGS["llama"]), lora_alpha=4), adapter="default")
        model = self.lora(build(CONFIGS["llama"]), lora_alpha=8)
        assert in_memory(model, adapter="default") != first
        torch.manual_seed(1)
        model.add_adapter("second", LoraConfig(r=2, lora_alpha=4, init_lora_weights=False))
        assert in_memory(model, adapter="second") == first
        model.base_model.model.model.layers[0].self_attn.q_proj.lora_B["second"].weight.data[0, 0] += 1
        assert in_memory(model, adapter="second") != first

    def test_saved_and_reloaded_adapter_is_the_same(self, tmp_path):
        model = self.lora(build(CONFIGS["llama"]), lora_dropout=0.1)
        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(build(CONFIGS["llama"]), tmp_path, adapter_name="sft")
        assert in_memory(loaded, adapter="sft") == in_memory(model, adapter="default")

    def test_pissa_changes_the_base(self):
        bare = in_memory(build(CONFIGS["llama"]))
        assert in_memory(get_peft_model(build(CONFIGS["llama"]), LoraConfig(r=2, init_lora_weights="pissa"))) != bare

    def test_merged_adapter_is_refused(self):
        model = self.lora(build(CONFIGS["llama"]))
        model.merge_adapter()
        with pytest.raises(ValueError, match=r"adapter 'default' is merged into model\.layers\.0\.self_attn\.q_proj"):
            in_memory(model)

    def test_unknown_adapter_is_refused(self):
        with pytest.raises(ValueError, match="no adapter 'sft'; it has: default"):
            in_memory(self.lora(build(CONFIGS["llama"])), adapter="sft")


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    build(LlamaConfig(**{**SMALL, "hidden_size": 64})).save_pretrained(folder)

    def load_(**options):
        options = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, **options}
        quantisation = BitsAndBytesConfig(load_in_4bit=True, **options)
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=quantisation)

    return load_


class TestQuantised:
    def test_same_twice_and_differs_by_quantisation(self, load):
        found = [
            in_memory(load()),
            in_memory(load(bnb_4bit_quant_type="fp4")),
            in_memory(load(bnb_4bit_use_double_quant=False)),
            in_memory(load(bnb_4bit_compute_dtype=torch.bfloat16)),
        ]
        assert len(set(found)) == 4
        assert in_memory(load()) == found[0]

    def test_scales_count_and_adapter_off_is_the_base(self, load):
        model = load()
        bare = in_memory(model)
        wrapped = get_peft_model(model, LoraConfig(r=2))
        assert in_memory(wrapped) == bare
        wrapped.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.quant_state.absmax[0] += 1
        assert in_memory(wrapped) != bare

    def test_saved_in_four_bit_and_reloaded_is_the_same_and_must_be_loaded(self, load, tmp_path):
        model = load()
        model.save_pretrained(tmp_path)
        assert fingerprint_path(tmp_path, torch.float32, "float32") is None
        reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
        assert in_memory(reloaded) == in_memory(model)

    @pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="only AVX512-BF16 CPUs repack 4-bit weights")
    def test_weights_repacked_by_an_eval_forward_are_refused(self, load):
        model = load().eval()
        for module in model.modules():
            module.support_avx512bf16_for_cpu = True
        with torch.no_grad():
            model(torch.zeros(1, 4, dtype=torch.long))
        with pytest.raises(ValueError, match=r"q_proj.weight was repacked by an eval-mode forward"):
            in_memory(model)


class TestShardedModels:
    def test_meta_and_zero3_are_refused(self):
        model = build(CONFIGS["llama"])
        model.lm_head.weight.ds_id = 1
        with pytest.raises(
            ValueError, match=r"lm_head.weight is sharded by ZeRO-3: take the fingerprint from the files"
        ):
            in_memory(model)
        with torch.device("meta"):
            meta = build(CONFIGS["llama"])
        with pytest.raises(ValueError, match="is on meta"):
            in_memory(meta)


tensors = st.lists(st.floats(width=32), min_size=0, max_size=5).map(lambda values: torch.tensor(values))


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=4), tensors, max_size=4), st.randoms())
def test_order_of_tensors_does_not_matter_but_names_do(named, random):
    shuffled = list(named.items())
    random.shuffle(shuffled)
    before = fingerprint_tensors(named, {"a": "1", "b": "2"})
    assert fingerprint_tensors(shuffled, {"b": "2", "a": "1"}) == before
    if named:
        name, tensor = shuffled[0]
        renamed = {**named, name + "x": tensor} if name + "x" not in named else {}
        renamed.pop(name, None)
        assert fingerprint_tensors(renamed, {"a": "1", "b": "2"}) != before


def test_name_given_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        fingerprint_tensors([("a", torch.ones(1)), ("a", torch.ones(1))], {})


def test_bytes_count_not_values():
    """-0.0 == 0.0, and NaN != NaN, but fingerprints compare bits."""
    zero, nan = torch.zeros(1), torch.full((1,), float("nan"))
    assert fingerprint_tensors({"a": zero}, {}) != fingerprint_tensors({"a": -zero}, {})
    assert fingerprint_tensors({"a": nan}, {}) == fingerprint_tensors({"a": nan.clone()}, {})
    assert fingerprint_tensors({"a": zero}, {}) != fingerprint_tensors({"a": zero.int()}, {})
    assert fingerprint_tensors({"a": zero}, {}) != fingerprint_tensors({"a": zero[None]}, {})


def test_chunks_do_not_change_the_digest(monkeypatch):
    weight = torch.randn(100, 7)
    whole = fingerprint_tensors({"w": weight}, {})
    monkeypatch.setattr("alignlab.cache.fingerprint.CHUNK", 11)
    assert fingerprint_tensors({"w": weight}, {}) == whole
