"""The model card of a run: README.md with the hub's metadata, from what the run left in its folder."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from alignlab import losses

from .records import RunRecord, read_run
from .tables import flat, format_value

CARD = "README.md"
_SHOWN = ("loss", "accuracy", "margins", "displacement")  # charts, where they were drawn
_FIGURES = {
    "rewards/accuracies": ("preference accuracy", "accuracy"),
    "rewards/margins": ("reward margin", "reward_margin"),
    "loss": ("loss", "loss"),
    "logps_per_token/chosen": ("log-probability a token, chosen", "logp_per_token"),
}
_TOLD: tuple[str, ...] = ("learning_rate", "lr_scheduler_type", "num_train_epochs", "max_steps", "max_length", "optim")
_TOLD += ("per_device_train_batch_size", "gradient_accumulation_steps", "bf16", "deepspeed", "seed")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE = re.compile(r"\.(jsonl?|csv|parquet|arrow|gz|txt)$")


def write_card(folder: str | Path, output: str | Path | None = None) -> Path:
    """Writes the model card of a finished run, by default ``README.md`` in its folder, and returns its path.

    Raises:
        FileNotFoundError, ValueError: ``folder`` is not that of a run.
    """
    run = read_run(Path(folder).resolve())
    path = Path(output) if output is not None else Path(folder) / CARD
    path.write_text(card(run), encoding="utf-8")
    return path


def card(run: RunRecord) -> str:
    """Returns the text of the card: YAML between two lines of dashes, then markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["code"] = _code
    loss, source = _described(run)
    told = {key: value for key, value in run.config.items() if key in _TOLD and value not in (None, False, -1)}
    return environment.get_template("card.md").render(
        run=run,
        metadata=_metadata(run).to_yaml(),
        base=str(run.config.get("model", {}).get("name_or_path", "")),
        loss=loss,
        citation=losses.bibtex(source),
        kind=_kind(run.folder),
        adapter=(run.folder / "adapter_config.json").is_file(),
        figures=[(words, format_value(value)) for words, _, value in _figures(run)],
        told=[*flat({"loss": run.config.get("loss", {})}).items(), *told.items()],
        sets={name: one.get("rows") for name, one in run.data.get("sets", {}).items()},
        sources=list(_paths(run.config.get("data", {}).get("train"))),
        charts=[name for name in _SHOWN if (run.folder / "plots" / f"{name}.png").is_file()],
        packages=run.environment.get("packages", {}),
    )


def _metadata(run: RunRecord) -> ModelCardData:
    data = run.config.get("data", {})
    base = str(run.config.get("model", {}).get("name_or_path", ""))
    adapter = (run.folder / "adapter_config.json").is_file()
    sets = [path for path in _paths(data.get("train")) if _on_hub(path)]
    name = str(run.config.get("loss", {}).get("name", ""))
    results = [
        EvalResult(
            task_type=_kind(run.folder),
            dataset_type="preferences",
            dataset_name="held-out preference pairs",
            metric_type=kind,
            metric_name=words,
            metric_value=value,
        )
        for words, kind, value in _figures(run)
    ]
    return ModelCardData(
        base_model=base if _on_hub(base) else None,
        datasets=sets or None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag=_kind(run.folder),
        tags=["alignlab", "preference-alignment", re.sub(r"[^\w.-]+", "-", Path(name).name)],
        model_name=run.name,
        eval_results=results or None,
    )


def _figures(run: RunRecord) -> Iterator[tuple[str, str, float]]:
    """Yields words, the hub's kind and the value of each held-out metric that the run has."""
    for metric, (words, kind) in _FIGURES.items():
        value = run.held_out(metric)
        if value is not None:
            yield words, kind, value


def _described(run: RunRecord) -> tuple[str, str]:
    """Returns what the loss computes, in a sentence, and what its docstring cites, with that of its base."""
    block = run.config.get("loss", {})
    summary = ""
    sources: list[str] = []
    while block:
        name = block if isinstance(block, str) else str(block.get("name", ""))
        if name in losses.names():
            found = losses.describe(name)
            summary, sources = summary or found.summary, [*sources, found.source]
        block = block.get("base") if isinstance(block, Mapping) else None
    return summary, "; ".join(sources)


def _kind(folder: Path) -> str:
    """Returns the hub's name of what the model does."""
    config = folder / "config.json"
    values = config.read_text(encoding="utf-8") if config.is_file() else ""
    return "text-classification" if "ForSequenceClassification" in values else "text-generation"


def _paths(train: Any) -> Iterator[str]:
    """Yields the paths and hub ids of a data set as configs write it."""
    for one in train if isinstance(train, list) else [train]:
        path = one.get("path") if isinstance(one, Mapping) else one
        if isinstance(path, str):
            yield path


def _on_hub(path: str) -> bool:
    return bool(_HUB_ID.fullmatch(path)) and not _FILE.search(path) and not Path(path).exists()


def _code(value: Any) -> str:
    """Returns a value as code in markdown, whatever it holds."""
    return "`" + " ".join(str(value).replace("`", "'").replace("|", "\\|").split()) + "`"
