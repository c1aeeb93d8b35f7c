"""Every kind of adapter that PEFT makes, and what becomes of it here: exact, made from training rows, or refused."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from alignlab.runtime import is_sharded_at_load


class Kind(NamedTuple):
    """What becomes of adapters of one kind.

    Attributes:
        status: "exact": saved, loaded under any seed and merged, it scores as it did in memory; "rows": exact, and
            made from training rows; "refused".
        note: why it is refused, or what it takes.
        quantised: also on a base that is stored in 4 or 8 bits.
        merges: also merged into its base; "full": not where the base is stored in 4 or 8 bits.
        rewrites: making it takes a part out of the base weights, which it then holds.
        again: loading makes the same start anew, so that what is saved need not hold it.
    """

    status: Literal["exact", "rows", "refused"] = "exact"
    note: str = ""
    quantised: bool = True
    merges: bool | Literal["full"] = True
    rewrites: bool = False
    again: bool = True


def _refused(note: str) -> Kind:
    return Kind("refused", note)


_FULL = Kind(quantised=False)
_PROMPT = "its virtual tokens stand before every row, but rows here share prompts and are scored at positions of theirs"
_TASKS = "it wants the number of a task with every forward pass, which rows here do not have"

# By init_lora_weights.
STARTS: dict[str, Kind] = {
    "true": Kind(),
    "false": Kind(note="starts at random, apart from the base: the guard before the first step wants to be told so"),
    "gaussian": Kind(),
    "orthogonal": _FULL,
    "mica": _FULL,
    "olora": Kind(rewrites=True),
    "pissa": Kind(quantised=False, rewrites=True),
    "pissa_niter_N": Kind(note="saved as plain LoRA of twice the rank", quantised=False, rewrites=True, again=False),
    "eva": Kind("rows", "principal components of the inputs of every layer"),
    "corda": Kind("rows", "covariances of inputs; saved as plain LoRA of twice the rank", False, True, True, False),
    "loftq": _refused(
        "it rounds the base as it is made, so the policy would not start as the reference; quantise with "
        "model.load_in_4bit and give init_lora_weights: true"
    ),
    "lora_ga": _refused(
        "it starts from a gradient of the run's loss with respect to the whole base, which is not taken here; "
        "eva and corda start from the training rows"
    ),
}

# By peft_type; of LORA the start decides.
TYPES: dict[str, Kind] = {
    "BEFT": Kind(note="merges where layers have a bias", merges=False),
    "BOFT": Kind(),
    "C3A": _FULL,
    "DEFT": _FULL,
    "DELORA": _FULL,
    "FOURIERFT": Kind(),
    "FROD": _FULL,
    "GLORA": _FULL,
    "GRALORA": Kind(),
    "HIRA": Kind(),
    "HRA": _FULL,
    "IA3": Kind(merges="full"),
    "LILY": Kind(merges=False),
    "LN_TUNING": _FULL,
    "LOHA": _FULL,
    "LOKR": _FULL,
    "MISS": Kind(),
    "OFT": Kind(),
    "OSF": _FULL,
    "PEANUT": _FULL,
    "PSOFT": _FULL,
    "PVERA": Kind(),
    "RANDLORA": Kind(),
    "ROAD": Kind(),
    "SHIRA": Kind(),
    "SUPERTUNING": _FULL,
    "TINYLORA": _FULL,
    "TRAINABLE_TOKENS": _FULL,
    "UNILORA": _FULL,
    "VBLORA": _FULL,
    "VERA": Kind(),
    "WAVEFT": Kind(),
    "ADALORA": _refused(
        "its ranks move by a call after every step and its regulariser joins the loss, neither of which is done here"
    ),
    "ADAMSS": _refused("it needs scikit-learn, and has not been tried here"),
    "ADAPTION_PROMPT": _refused(_PROMPT),
    "CARTRIDGE": _refused(_PROMPT),
    "CPT": _refused(_PROMPT),
    "MULTITASK_PROMPT_TUNING": _refused(_TASKS),
    "POLY": _refused(_TASKS),
    "PREFIX_TUNING": _refused(_PROMPT),
    "PROMPT_TUNING": _refused(_PROMPT),
    "P_TUNING": _refused(_PROMPT),
    "SHADOW": _refused("it runs a network beside the base, which does not go through packed rows"),
    "XLORA": _refused("it mixes saved adapters by a forward pass of its own before each one"),
}


def start_of(config: Any) -> str:
    """Returns how a LoRA starts, as the table names it."""
    found = str(getattr(config, "init_lora_weights", True)).lower()
    return "pissa_niter_N" if found.startswith("pissa_niter_") else "true" if found == "none" else found


def type_of(config: Any) -> str:
    """Returns the PEFT type of a configuration."""
    return str(getattr(config.peft_type, "value", config.peft_type))


def kind_of(config: Any) -> Kind:
    """Returns what becomes of an adapter of this PEFT configuration."""
    if type_of(config) == "LORA":
        return STARTS.get(start_of(config), _refused("this way to start has not been tried here"))
    return TYPES.get(type_of(config), _refused("this type has not been tried here"))


def check_adapter(config: Any, *, quantised: bool = False, merges: bool = False) -> None:
    """Refuses an adapter that could not be trained, saved and loaded exactly.

    Args:
        quantised: the base is stored in 4 or 8 bits. merges: the adapter is to be merged when it is trained.

    Raises:
        ValueError: names the option, why, and what is allowed.
    """
    kind, lora = kind_of(config), type_of(config) == "LORA"
    what = f"peft.init_lora_weights: {config.init_lora_weights!r}" if lora else f"peft.peft_type: {type_of(config)}"
    table = STARTS if lora else {"LORA": Kind(), **TYPES}
    if kind.status == "refused":
        raise ValueError(f"{what} cannot be used: {kind.note}; allowed: {_names(table, quantised)}")
    if quantised and not kind.quantised:
        raise ValueError(
            f"{what} does not stand on a base that is stored in 4 or 8 bits; allowed there: {_names(table, True)}"
        )
    if is_sharded_at_load() and (kind.rewrites or kind.status == "rows"):
        raise ValueError(f"{what} starts from whole weights, of which ZeRO-3 leaves each rank a part; use ZeRO-2")
    if merges and (not kind.merges or (quantised and kind.merges == "full")):
        where = " where the base is stored in 4 or 8 bits" if kind.merges else ""
        raise ValueError(f"model.merge_adapter: PEFT cannot merge an adapter of {what}{where}; leave the key out")


def _names(table: dict[str, Kind], quantised: bool) -> str:
    return ", ".join(
        name for name, kind in table.items() if kind.status != "refused" and (kind.quantised or not quantised)
    )
