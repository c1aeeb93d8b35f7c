"""The table of shapes makes the models that it names, and a small one of each kind."""

import logging

import pytest
import torch
from making import make_model
from transformers import AutoConfig, AutoModelForCausalLM

from alignlab.config import ModelOptions
from alignlab.models import architecture, known_shapes, shrunk

PARAMETERS = {  # as the hub counts them in the safetensors files; tied embeddings once
    "meta-llama/Meta-Llama-3-8B": 8_030_261_248,
    "meta-llama/Llama-3.1-70B": 70_553_706_496,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "google/gemma-2-9b": 9_241_705_984,
    "Qwen/Qwen2.5-0.5B-Instruct": 494_032_768,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "Qwen/Qwen3-1.7B": 1_720_574_976,
    "Qwen/Qwen3-4B": 4_022_468_096,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "Qwen/Qwen3-14B": 14_768_307_200,
    "Qwen/Qwen3-32B": 32_762_123_264,
    "Qwen/Qwen3-30B-A3B": 30_532_122_624,
    "allenai/OLMoE-1B-7B-0924": 6_919_161_856,
}


def count(config):
    with torch.device("meta"):
        return sum(one.numel() for one in AutoModelForCausalLM.from_config(config).parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_shapes_make_as_many_parameters_as_the_model_has(name):
    assert count(architecture(ModelOptions(name))) == PARAMETERS[name]


def test_a_folder_goes_before_the_table_and_the_table_says_that_it_answers(tmp_path, caplog):
    """A folder called as the table's model is that folder's; a revision changes nothing that memory depends on."""
    make_model().config.save_pretrained(tmp_path)
    assert architecture(ModelOptions(str(tmp_path))).hidden_size == 32
    with caplog.at_level(logging.INFO, logger="alignlab"):
        assert architecture(ModelOptions("Qwen/Qwen3-4B", revision="abc")).num_hidden_layers == 36
    assert "Qwen/Qwen3-4B is not on this disk" in caplog.text


def test_what_neither_disk_nor_table_has_is_asked_of_the_hub():
    with pytest.raises(ValueError, match=r"^the model of 'nobody/nothing' cannot be loaded: there is no such f"):
        architecture(ModelOptions("nobody/nothing"))


KINDS = {values["model_type"]: name for name, values in known_shapes().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_small_ones_have_two_layers_of_the_same_kind(kind):
    whole = architecture(ModelOptions(KINDS[kind]))
    small = shrunk(whole, vocabulary=100)
    assert (small.model_type, small.num_hidden_layers, small.vocab_size, small.hidden_size) == (kind, 2, 100, 64)
    assert small.num_attention_heads == 4
    groups = whole.num_attention_heads // whole.num_key_value_heads
    assert small.num_key_value_heads == max(4 // groups, 1)
    assert (getattr(small, "num_experts", 4), getattr(small, "num_experts_per_tok", 2)) == (4, 2)
    assert count(small) < 300_000
    assert AutoConfig.for_model(**small.to_dict()).to_dict() == small.to_dict()
