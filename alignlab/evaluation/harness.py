"""Tasks of lm-evaluation-harness on a saved run, its model loaded as ours are: adapters, 4-bit bases and all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from accelerate import PartialState

from alignlab import models
from alignlab.config import Dtype, ModelOptions

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HarnessOptions:
    """Which tasks, on which model.

    Attributes:
        model: folder or hub id; a folder with an adapter brings its base.
        tasks: names of tasks, groups or tags of the harness, or paths of YAML files of tasks.
        include: a folder of further tasks.
        limit: so many documents of each task; None: all.
        chat: whether the tokenizer's chat template is put around every request.
        batch_size: requests a forward.
    """

    model: str
    tasks: Sequence[str]
    include: Path | None = None
    limit: int | None = None
    chat: bool = False
    batch_size: int = 8
    tokenizer: str | None = None
    dtype: Dtype = "auto"
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        if not self.tasks or not all(self.tasks):
            raise ValueError(f"--lm-eval: expected names of tasks with commas between, found {','.join(self.tasks)!r}")
        if self.include is not None and not self.include.is_dir():
            raise ValueError(f"--lm-eval-tasks: {self.include} is no folder; expected one with YAML files of tasks")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--lm-eval-limit: expected at least 1, found {self.limit}")


def run_harness(options: HarnessOptions) -> dict[str, Any]:
    """Returns the harness's figures: task -> metric -> value, ``..._stderr`` beside it, and ``documents``.

    Raises:
        ValueError: the package is missing, there is no such task, or the model cannot be loaded.
    """
    try:
        lm_eval = import_module("lm_eval")
    except ImportError as error:
        raise ValueError(
            "--lm-eval: needs lm-evaluation-harness, which is not installed: pip install 'alignlab[eval]'"
        ) from error
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(options.include) if options.include else None)
    missing = [name for name in options.tasks if not (manager.match_tasks([name]) or Path(name).is_file())]
    if missing:
        raise ValueError(f"--lm-eval: there is no task {', '.join(map(repr, missing))}; `lm-eval ls tasks` lists them")
    if models.outputs_of(options.model):
        raise ValueError(f"--lm-eval: {options.model} is a reward model; tasks are for language models")
    loading = ModelOptions(
        name_or_path=options.model,
        tokenizer=options.tokenizer,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    model: Any = models.load_model(loading).requires_grad_(False).eval()
    device = PartialState().device
    model = model if models.is_quantised(model) else model.to(device)
    wrapped = HFLM(pretrained=model, tokenizer=models.load_tokenizer(loading), batch_size=options.batch_size)
    found = lm_eval.simple_evaluate(
        model=wrapped,
        tasks=list(options.tasks),
        limit=options.limit,
        task_manager=manager,
        apply_chat_template=options.chat,
        log_samples=False,
        random_seed=options.seed,
        numpy_random_seed=options.seed,
        torch_random_seed=options.seed,
        fewshot_random_seed=options.seed,
    )
    if found is None:  # another rank than the first
        return {}
    return {name: _figures(values, found["n-samples"].get(name, {})) for name, values in found["results"].items()}


def _figures(values: dict[str, Any], counts: dict[str, int]) -> dict[str, float]:
    """Returns the numbers of one task; the harness writes ``acc,none`` for a metric without a filter."""
    figures = {
        name.removesuffix(",none").replace(",none", ""): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return figures | ({"documents": float(counts["effective"])} if "effective" in counts else {})
