"""A batch in one buffer: what comes out is what went in, wherever it goes, in one copy."""

from __future__ import annotations

import pickle
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device
from kernel_counts import Ledger
from torch.utils.data import DataLoader

from alignlab.data.parcel import Parcel


class Plan(NamedTuple):
    table: torch.Tensor
    longest: int


def example() -> dict[str, Any]:
    """Tensors of every kind that a batch has, one empty, one a view of another, and what is no tensor."""
    square = torch.arange(12.0).reshape(3, 4)
    return {
        "completions": {"fields": ["chosen"], "mask": torch.tensor([[True, False, True]]), "ids": torch.arange(5)},
        "scores": {"reference": square.t(), "none": torch.zeros(2, 0, 3)},
        "plan": Plan(torch.tensor([1, -2, 3], dtype=torch.int32), 7),
        "row": np.array([4, 5]),
        "zero_dim": torch.tensor(2.5, dtype=torch.float64),
    }


def tensors(batch: Any) -> dict[str, torch.Tensor]:
    return {
        "mask": batch["completions"]["mask"],
        "ids": batch["completions"]["ids"],
        "reference": batch["scores"]["reference"],
        "none": batch["scores"]["none"],
        "table": batch["plan"].table,
        "zero_dim": batch["zero_dim"],
    }


def check(parcel: Parcel) -> None:
    for name, expected in tensors(example()).items():
        found = tensors(parcel)[name]
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected), name
    assert parcel["completions"]["fields"] == ["chosen"]
    assert (type(parcel["plan"]), parcel["plan"].longest) == (Plan, 7)
    assert parcel["row"].tolist() == [4, 5]


def test_what_comes_out_is_what_went_in() -> None:
    parcel = Parcel.of(example())
    check(parcel)
    check(pickle.loads(pickle.dumps(parcel)))
    check(parcel.to("cpu"))


def test_one_copy_takes_all_of_it_to_a_device_and_what_is_no_tensor_stays() -> None:
    parcel, plain = Parcel.of(example()), example()
    with Ledger() as ledger:
        moved = send_to_device(parcel, torch.device("meta"), non_blocking=True)
    assert ledger.copied.total() == 1
    assert {one.device.type for one in tensors(moved).values()} == {"meta"}
    assert isinstance(moved["row"], np.ndarray)
    with Ledger() as ledger:
        send_to_device(plain, torch.device("meta"))
    assert ledger.copied.total() == 6, "a plain batch is a copy a tensor"


def test_tensors_begin_at_multiples_of_sixteen_bytes_of_one_storage() -> None:
    parcel = Parcel.of(example())
    base = parcel.buffer.data_ptr()
    for one in tensors(parcel).values():
        if one.numel():
            assert (one.data_ptr() - base) % 16 == 0
            assert one.untyped_storage().data_ptr() == base


def test_a_worker_hands_over_a_parcel() -> None:
    loader: DataLoader[Any] = DataLoader([0], batch_size=1, collate_fn=make, num_workers=1)  # type: ignore[arg-type]
    (batch,) = loader
    assert isinstance(batch, Parcel)
    check(batch)


def make(_: Any) -> Parcel:
    return Parcel.of(example())
