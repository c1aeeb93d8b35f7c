"""The typed configuration of a run: trainer arguments, loss, model, data and adapter, from Python or from YAML."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from alignlab import losses
from alignlab.runtime import check_fsdp, zero_stage

from .arguments import PreferenceConfig, hints
from .checks import check_combinations, check_peft, check_sources, check_training_options, refuse_moved
from .options import DataConfig, ModelOptions
from .parser import Key, Schema, Values, read_yaml, split_command_line, write_yaml
from .places import check_places
from .recipes import shipped_configs

_HIDDEN = ("parallelism_config", "local_rank", "hub_token")  # a Python object, the launcher's, a secret


@dataclass(frozen=True)
class RunConfig:
    """A whole run, checked: the loss builds, the adapter's options exist, no combination is impossible."""

    loss: Values
    model: ModelOptions
    data: DataConfig
    peft: Values | None = None
    training: Values = field(default_factory=dict)  # the flat keys of PreferenceConfig

    def __post_init__(self) -> None:
        check_training_options(self.training, hints())
        spread = self.training.get("fsdp_config")
        given = spread if isinstance(spread, Mapping) else None  # a file is read with the arguments
        check_fsdp(self.training.get("fsdp"), given, deepspeed=self.training.get("deepspeed") is not None)
        check_sources(self.data)
        losses.build(self.loss)  # an unknown name or option stops the run before anything is loaded
        if self.peft is not None:
            check_peft(self.peft)
        check_combinations(self.model, self.data, self.peft, self.training)
        if "output_dir" in self.training:
            check_places(self.model, self.training, self.data)

    def training_args(self) -> PreferenceConfig:
        """Builds the trainer's arguments; this is what initialises devices and the distributed backend."""
        values = dict(self.training)
        for name in ("deepspeed", "reference_deepspeed"):
            if isinstance(values.get(name), str):
                values[name] = str(find_config(values[name]))
        if self.model.merge_adapter and zero_stage(values.get("deepspeed")) == 3:
            raise ValueError(
                "model.merge_adapter: under ZeRO-3 no rank holds a whole base to merge into; merge the saved adapter "
                "afterwards, or train at stage 2"
            )
        return PreferenceConfig(**values)

    def to_dict(self) -> Values:
        """Returns the config as ``load_config`` takes it, defaults included."""
        blocks = {"loss": self.loss, "model": asdict(self.model), "data": asdict(self.data), "peft": self.peft}
        return {**blocks, **self.training}

    def to_yaml(self) -> str:
        """Returns the resolved config as YAML; loading that gives the same config."""
        return write_yaml(self.to_dict())


def load_config(config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a config without loading a model, data or the distributed backend.

    Args:
        config: a YAML file, the name of a shipped config, or the values themselves. Paths in a config are relative
            to the working directory.
        overrides: command-line words, ``["--loss.beta", "0.2", "--learning_rate=1e-6"]``.

    Raises:
        ValueError: unknown or duplicate key, wrong type, impossible combination; names the dotted key.
        FileNotFoundError: no such config; names the shipped ones.
    """
    extra, options = split_command_line(overrides)
    if extra is not None:
        raise ValueError(f"overrides start with --, found {extra!r}")
    values = dict(config) if isinstance(config, Mapping) else read_yaml(find_config(config))
    values = schema().override(values, options)
    refuse_moved(values)
    if values.get("output_dir") is None:
        values["output_dir"] = f"runs/{'run' if isinstance(config, Mapping) else Path(config).stem}"
    checked = schema().check(values)
    model, data = ModelOptions(**checked.pop("model")), DataConfig(**checked.pop("data"))
    return RunConfig(checked.pop("loss"), model, data, checked.pop("peft"), checked)


def find_config(name: str | Path) -> Path:
    """Returns the file called ``name``, or the shipped config or recipe of that name (with or without ``.yaml``)."""
    path, folder = Path(name), shipped_configs()
    candidates = [path]
    if path.name == str(name):  # a bare name
        places = (folder, folder / "recipes")
        candidates += [place / file for place in places for file in (path.name, f"{path.name}.yaml")]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".json")))
    raise FileNotFoundError(
        f"no config {str(name)!r}; shipped ones, found by their bare name: {shipped}; and what `alignlab recipes` lists"
    )


@cache
def schema() -> Schema:
    """Returns the keys of a config, in groups as the help shows them."""
    result = Schema()
    loss_help = "Name of the loss and its options: {name: dpo, beta: 0.1}; `alignlab losses` lists them."
    peft_help = "Options of a new adapter under their PEFT names: {r: 16}; `peft_type` is LORA unless given."
    result.add("loss", [Key("loss", Values, MISSING, loss_help)])
    result.add_dataclass("model", ModelOptions, prefix="model.")
    result.add_dataclass("data", DataConfig, prefix="data.")
    result.add("adapter", [Key("peft", Values | None, None, peft_help)])
    theirs = {one.name for one in fields(TrainingArguments)}
    result.add_dataclass("preference training", PreferenceConfig, skip=theirs)
    ours = {one.name for one in fields(PreferenceConfig)} - theirs
    result.add_dataclass("transformers.TrainingArguments", PreferenceConfig, skip=ours | {*_HIDDEN}, help=_their_help)
    return result


def _their_help(name: str) -> str:
    """Returns the first sentence that the docstring of TrainingArguments has for an argument."""
    found = re.search(rf"^ +{name} \(.*\):\n((?:.*\S.*\n)+)", inspect.getdoc(TrainingArguments) or "", re.MULTILINE)
    return re.split(r"(?<=\.)\s", " ".join(found[1].split()))[0] if found else ""
