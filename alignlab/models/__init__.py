"""Names and options to modules: policy, tokenizer, quantised base, adapters.

Never here: a forward pass, data, or training.
"""

from .adapter_kinds import check_adapter, kind_of
from .adapters import (
    adapter_config,
    add_adapter,
    base_path,
    disable_dropout,
    is_peft,
    leaves_base_alone,
    merge_adapter,
    peft_options,
    refuse_unrepeatable,
    save_as_plain,
)
from .load import load_model, load_tokenizer, pad_token_id, saved_folder, torch_dtype
from .quantised import guard_quantised, is_quantised
from .room import check_room, room_of
from .shapes import architecture, known_shapes, shrunk, write_tiny
from .value_heads import check_task, outputs_of, reading_of, save_reading, settle_reading

__all__ = [
    "adapter_config",
    "add_adapter",
    "architecture",
    "base_path",
    "check_adapter",
    "check_room",
    "check_task",
    "disable_dropout",
    "guard_quantised",
    "is_peft",
    "is_quantised",
    "kind_of",
    "known_shapes",
    "leaves_base_alone",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "outputs_of",
    "pad_token_id",
    "peft_options",
    "reading_of",
    "refuse_unrepeatable",
    "room_of",
    "save_as_plain",
    "save_reading",
    "saved_folder",
    "settle_reading",
    "shrunk",
    "torch_dtype",
    "write_tiny",
]
