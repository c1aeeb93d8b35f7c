"""What a micro-batch asks of a device: kernels, waits of the host, copies; counted, so that no GPU is needed.

    python benchmarks/kernel_counts.py [LOSS ...]

prints two tables and writes docs/results/kernel_counts.csv and head_counts.csv where no loss is named. The head's
operators and memory are counted on tensors without storage, at a size that is real. A micro-batch is one of the real
trainer on a tiny model on the CPU, in its third step: nothing is worked out for the first time any more.

What is a wait on a CUDA device is known by operator: reading a number (``.item()``, ``bool``, ``.tolist()``,
``.cpu()``), ``nonzero`` and what calls it (an index by a boolean mask), ``equal``, ``unique``. Not seen are copies made
by a library's own kernels, waits inside NCCL and the allocator, and what a fused kernel would save. All tensors are
taken for the device's, so that a number read from a tensor that the host made counts too.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
WAITS = (
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::masked_select",
    "aten::nonzero",
    "aten::unique_dim",
    "aten::_unique2",
)
READS = ("tolist", "cpu", "numpy", "__array__")  # of the CPU's tensors no operator is called for these
MADE_FROM_PYTHON = ("aten::lift_fresh", "aten::lift")  # torch.tensor(...): a copy to the device where it lies there
NO_KERNEL = {"aten::detach", "aten::empty", "aten::empty_like", "aten::new_empty", *MADE_FROM_PYTHON}


class Ledger(TorchDispatchMode):
    """Counts operators while it is entered.

    Attributes:
        operators: those that launch a kernel, by name; views do not.
        waits: where the host would wait for the device, by place in the code.
        copied: tensors that go from the host to the device, by place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copied: Counter[str] = Counter()
        self._patches = ExitStack()

    @property
    def kernels(self) -> int:
        """How many operators that are no views were called."""
        return self.operators.total()

    def __enter__(self) -> Ledger:
        for name in READS:
            self._patches.enter_context(patch.object(Tensor, name, self._noting(getattr(Tensor, name))))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().split(".")[0]
        masks = name.startswith("aten::index") and any(
            isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8)
            for one in (args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ())
        )
        if name in WAITS or masks:
            self.waits[place()] += 1
        out = func(*args, **(kwargs or {}))
        made = isinstance(out, Tensor) and out.device.type
        came = args[0].device.type if args and isinstance(args[0], Tensor) else made
        if name in MADE_FROM_PYTHON or (name == "aten::_to_copy" and (came, made) == ("cpu", "meta")):
            self.copied[place()] += 1
        if not func.is_view and name not in NO_KERNEL:
            self.operators[name] += 1
        return out

    def _noting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def noted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.waits[place()] += 1
            return method(tensor, *args, **kwargs)

        return noted


def place() -> str:
    """Returns the innermost line of ours, or of the libraries under the trainer, that is being run."""
    for frame in reversed(traceback.extract_stack()):
        for package in ("alignlab", "transformers", "accelerate"):
            parts = Path(frame.filename).parts
            if package in parts[:-1] and "benchmarks" not in parts:
                start = len(parts) - 1 - parts[::-1].index(package)
                return f"{'/'.join(parts[start:])}:{frame.name}"
    return "elsewhere"


# ---- the head ------------------------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """The bytes of the storages that operators make, as long as they live: the peak of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        import weakref

        out = func(*args, **(kwargs or {}))
        given = {id(one.untyped_storage()) for one in args if isinstance(one, Tensor)}
        for one in out if isinstance(out, list | tuple) else (out,):
            if isinstance(one, Tensor) and id(one.untyped_storage()) not in given | self.live.keys():
                storage = one.untyped_storage()
                self.live[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def head_counts(
    vocabulary: int = 128256, positions: int = 4096, width: int = 4096, *, kl: bool = False, dtype: Any = torch.bfloat16
) -> dict[str, Any]:
    """Returns operators, forward and backward, and extra memory of the chunked head with a trained weight.

    Extra are all bytes but hidden states, weight, and the gradients of both.
    """
    from alignlab.scoring.chunked import chunked_scores
    from alignlab.scoring.logits import Head, States
    from alignlab.scoring.wanted import Wanted, block_shape

    with torch.device("meta"):
        head = Head(torch.nn.Linear(width, vocabulary, bias=False, dtype=dtype))
        hidden = torch.empty(positions, width, dtype=dtype, requires_grad=True)
        wanted = Wanted(torch.empty(positions, dtype=torch.long), States(hidden.detach(), head) if kl else None)
        with LiveBytes() as memory, Ledger() as ledger:
            values = chunked_scores(hidden, head, wanted)
            torch.autograd.backward(list(values.values()), [torch.empty(positions) for _ in values])
    gradients = (vocabulary + positions) * width * dtype.itemsize
    return {
        "vocabulary": vocabulary,
        "positions": positions,
        "width": width,
        "dtype": str(dtype).removeprefix("torch."),
        "kl": kl,
        "block": "{} x {}".format(*block_shape("meta", vocabulary)),
        "operators": ledger.kernels,
        "extra_megabytes": round((memory.peak - gradients) / 1e6),
    }


# ---- a micro-batch -------------------------------------------------------------------------------------------------


def micro_batch_counts(loss: str, folder: Path, **options: Any) -> dict[str, Any]:
    """Returns what the two micro-batches of the third optimiser step ask for, the larger of each.

    ``waits_a_step`` are those of the whole optimiser step that are not in its micro-batches, the stock Trainer's among
    them; ``copies`` are half of those of the whole step, a pass for totals included.
    """
    import zoo_ranks
    from making import make_tokenizer

    from alignlab import losses
    from alignlab.data.parcel import Parcel

    options = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, **options}
    run = zoo_ranks.trainer(make_tokenizer(), folder, losses.build(loss), **options)
    found: list[Ledger] = []
    step = run.training_step

    def counted(model: Any, inputs: Any, *rest: Any) -> Tensor:
        with Ledger() as ledger:
            result: Tensor = step(model, inputs, *rest)
        found.append(ledger)
        return result

    move = Parcel.to

    def moved(parcel: Parcel, device: Any, non_blocking: bool = False) -> Parcel:
        move(parcel, "meta", non_blocking)
        return move(parcel, device, non_blocking)

    with whole_step(run, 3) as whole, patch.object(run, "training_step", counted), patch.object(Parcel, "to", moved):
        run.train()
    measured = [found[index] for index in (4, 5)]
    inside = sum((ledger.waits for ledger in measured), Counter())
    return {
        "loss": loss,
        "layout": run.layout,
        "waits": max(ledger.waits.total() for ledger in measured),
        "copies": whole.copied.total() / 2,
        "operators": max(ledger.kernels for ledger in measured),
        "waits_a_step": (whole.waits - inside).total(),
        "where": listed(inside),
        "copied_where": listed(whole.copied),
        "where_a_step": listed(whole.waits - inside),
    }


def listed(places: Counter[str]) -> str:
    """Returns places and their counts in one line."""
    return "; ".join(f"{name} {count}" for name, count in sorted(places.items()))


@contextmanager
def whole_step(run: Any, number: int) -> Iterator[Ledger]:
    """Yields a ledger that is open from where the batches of an optimiser step are there to its end."""
    from transformers import TrainerCallback

    ledger, begin = Ledger(), run._step.begin

    def begun(*args: Any) -> Any:
        if run.state.global_step == number - 1:
            ledger.__enter__()
        return begin(*args)

    class Window(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == number:
                ledger.__exit__(None, None, None)

    run.add_callback(Window())
    with patch.object(run._step, "begin", begun):
        yield ledger


# ---- tables --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("losses", nargs="*", help="losses to count; by default all, and the tables are written")
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

    heads = [
        head_counts(vocabulary, kl=kl, dtype=dtype)
        for vocabulary in (32000, 128256, 262144)
        for dtype in (torch.bfloat16, torch.float32)
        for kl in (False, True)
    ]
    steps = []
    with tempfile.TemporaryDirectory() as folder:
        import zoo_ranks

        zoo_ranks.save_scorer(Path(folder))
        for name in options.losses or zoo_ranks.NAMES:
            steps.append(micro_batch_counts(name, Path(folder)))
            print({key: value for key, value in steps[-1].items() if value != ""}, flush=True)
    for one in heads:
        print(one)
    if not options.losses:
        write("head_counts", heads)
        write("kernel_counts", steps)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    """Writes a table to docs/results."""
    versions = {"torch": torch.__version__}
    with (ROOT / "docs" / "results" / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], *versions], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, **versions} for row in rows)


if __name__ == "__main__":
    main()
