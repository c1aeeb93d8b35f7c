"""Names and options to modules: policy, tokenizer, quantised base, adapters.

Never here: a forward pass, data, or training.
"""

from .load import (
    add_adapter,
    guard_quantised,
    is_peft,
    is_quantised,
    leaves_base_alone,
    load_model,
    load_tokenizer,
    merge_adapter,
    pad_token_id,
    peft_options,
    torch_dtype,
)

__all__ = [
    "add_adapter",
    "guard_quantised",
    "is_peft",
    "is_quantised",
    "leaves_base_alone",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "pad_token_id",
    "peft_options",
    "torch_dtype",
]
