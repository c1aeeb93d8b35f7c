"""What a run stands on: ranks, engines, precision, modules under their wrappers, the machine.

Never here: anything about preferences.
"""

from .compiled import compiled_layers, leave_uncompiled, uncompiled
from .engine import check_engine, describe_engine, load_sharded
from .environment import describe_environment
from .machine import Machine, this_machine
from .modules import check_one_device, evaluating, is_sharded_at_load, placed, unsharded, unwrap
from .numerics import Numerics, numerics_of
from .precision import FULL_FP32, product_error, set_matmul_precision, true_float32
from .progress import Lines, bar, clock_time, over, say, shown_as
from .ranks import from_main, gathered, is_main, rank_and_ranks, wait_for_all, workers_of_a_rank
from .zero import check_fsdp, check_launched, check_parallel, deepspeed_values, zero_stage

__all__ = [
    "FULL_FP32",
    "Lines",
    "Machine",
    "Numerics",
    "bar",
    "check_engine",
    "check_fsdp",
    "check_launched",
    "check_one_device",
    "check_parallel",
    "clock_time",
    "compiled_layers",
    "deepspeed_values",
    "describe_engine",
    "describe_environment",
    "evaluating",
    "from_main",
    "gathered",
    "is_main",
    "is_sharded_at_load",
    "leave_uncompiled",
    "load_sharded",
    "numerics_of",
    "over",
    "placed",
    "product_error",
    "rank_and_ranks",
    "say",
    "set_matmul_precision",
    "shown_as",
    "this_machine",
    "true_float32",
    "uncompiled",
    "unsharded",
    "unwrap",
    "wait_for_all",
    "workers_of_a_rank",
    "zero_stage",
]
