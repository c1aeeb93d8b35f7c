"""What may differ between a checkpoint and the run that goes on from it: three kinds of keys, and the table of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["cannot go on", "changes the run", "harmless"]
CANNOT, CHANGES, HARMLESS = "cannot go on", "changes the run", "harmless"

# Keys of which the state in a checkpoint is made: with another value it is not the state of this run.
_CANNOT = """
loss model.name_or_path model.revision model.adapter model.load_in_4bit model.load_in_8bit model.bnb_4bit_quant_type
model.bnb_4bit_use_double_quant peft reference ref_model_name_or_path ref_adapter sync_ref_model scorers
optim optim_args optim_target_modules deepspeed fsdp fsdp_config
seed data_seed train_sampling_strategy length_window dataloader_drop_last ignore_data_skip
"""
# Keys that go into the steps to come: they are applied from here on, if `resume_with_changes` says that it is meant.
_CHANGES = """
learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps num_train_epochs max_steps
weight_decay adam_beta1 adam_beta2 adam_epsilon max_grad_norm neftune_noise_alpha disable_dropout
model.dtype model.bnb_4bit_compute_dtype bf16 fp16 float32_matmul_precision tf32 reference_hidden_dtype
coupled_totals router_aux_loss_coef ref_model_mixup_alpha ref_model_sync_steps online_max_new_tokens
label_smoothing_factor average_tokens_across_devices auto_find_batch_size
restore_callback_states_from_checkpoint
"""
# Keys that change no step, or of which only the rows and their number in a step matter, which are compared themselves.
_HARMLESS = """
model.tokenizer model.attn_implementation model.trust_remote_code model.chat_template model.merge_adapter
data.train data.eval data.eval_rows max_length truncation_mode on_bad_row chat_template_kwargs default_label
reward_names lists_as max_completions score_empty_thoughts special_tokens_in_text data_workers data_cache_dir layout
reference_deepspeed score_cache_dir precompute_ref_batch_size allow_reference_mismatch
reference_tolerance eval_generations eval_max_new_tokens eval_judge max_wall_time trust_checkpoint progress
progress_seconds report report_samples output_dir overwrite_output_dir resume_with_changes resume_from_checkpoint
per_device_train_batch_size gradient_accumulation_steps
bf16_full_eval fp16_full_eval activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
liger_kernel_config use_cache torch_empty_cache_steps logging_strategy logging_steps logging_first_step
log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica disable_tqdm
report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy eval_steps
eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start eval_do_concat_batches
eval_use_gather_object eval_accumulation_steps include_for_metrics batch_eval_metrics save_only_model save_strategy
save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_private_repo hub_model_id
hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
full_determinism use_cpu accelerator_config dataloader_num_workers dataloader_pin_memory
dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
remove_unused_columns label_names length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb
ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug skip_memory_metrics do_train do_eval do_predict
"""
# Those that a finished run may differ in and still be this very run: they leave its model and its figures as they are.
_ASIDE = """
model.trust_remote_code data_workers data_cache_dir score_cache_dir precompute_ref_batch_size reference_deepspeed
max_wall_time trust_checkpoint progress progress_seconds report report_samples output_dir overwrite_output_dir
resume_with_changes resume_from_checkpoint activation_checkpointing activation_checkpointing_kwargs
gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps logging_strategy logging_steps
logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id save_only_model
save_strategy save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_private_repo
hub_model_id hub_strategy hub_always_push hub_revision dataloader_num_workers dataloader_pin_memory
dataloader_persistent_workers dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order
ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug
skip_memory_metrics do_train do_eval do_predict
"""
KINDS: dict[str, frozenset[str]] = {
    CANNOT: frozenset(_CANNOT.split()),
    CHANGES: frozenset(_CHANGES.split()),
    HARMLESS: frozenset(_HARMLESS.split()),
}
_LENGTH = ("max_steps", "num_train_epochs")  # raised, they are the same run for longer
_OVERLOOKED = frozenset(_ASIDE.split())
_NAME = re.compile(r"loss\.(.*\.)?name")  # of the loss, or of one that it is made of


@dataclass(frozen=True)
class Difference:
    """A key, what the checkpoint has for it, what the run has, and which kind of difference that is."""

    key: str
    before: Any
    now: Any
    kind: str

    def __str__(self) -> str:
        return f"{self.kind:<15}  {self.key}: {_shown(self.before)} -> {_shown(self.now)}"


def kind_of(key: str, before: Any = None, now: Any = None) -> str:
    """Returns which kind a difference in a dotted key is.

    Another loss is another run, another option of it a change. More steps or epochs than before are harmless, fewer
    a change. A key that no table has, of a newer library for instance, counts as a change.
    """
    if key in _LENGTH and _numbers(before, now) and 0 < before < now:
        return HARMLESS
    if key.startswith("loss."):
        return CANNOT if _NAME.fullmatch(key) else CHANGES
    block = key.split(".")[0]
    return next((kind for kind, keys in KINDS.items() if key in keys or block in keys), CHANGES)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Difference]:
    """Returns the keys that differ between two configs, the gravest kind first; nested blocks key by key.

    A key that only one of them has, of another version for instance, is left out where the other's is None.
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    keys = [key for key in (*old, *(one for one in new if one not in old)) if old.get(key) != new.get(key)]
    found = [Difference(key, old.get(key), new.get(key), kind_of(key, old.get(key), new.get(key))) for key in keys]
    return sorted(found, key=lambda one: list(KINDS).index(one.kind))


def makes_another_run(difference: Difference) -> bool:
    """True where a finished run that differs so is not this very run: other rows, another model or other figures."""
    return difference.key not in _OVERLOOKED and difference.key.split(".")[0] not in _OVERLOOKED


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value or None if isinstance(value, Mapping) else value


def _numbers(*values: Any) -> bool:
    return all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in values)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
