"""The reproductions in small: each program runs, its closed forms are exact, and a quick run repeats to the digit."""

from __future__ import annotations

import csv
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "repro"


@pytest.fixture(scope="module", autouse=True)
def programs_import_each_other() -> Iterator[None]:
    """The programs are run as scripts, so their folder is where they look for what they share."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def program(name: str) -> Any:
    return importlib.import_module(name)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- what they share ---------------------------------------------------------------------------------------------


def test_interval_by_hand() -> None:
    """1, 2, 3, 4, 5: standard deviation sqrt(2.5), standard error 0.7071, t = 2.776: 3 +- 1.963."""
    mean, low, high = program("results").interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, low, high) == pytest.approx((3.0, 3 - 1.96293, 3 + 1.96293), abs=1e-4)


def test_rows_that_stand_already_are_not_made_again(tmp_path: Path) -> None:
    results = program("results")
    made: list[int] = []

    def make(seed: int) -> dict[str, float]:
        made.append(seed)
        return {"reward": seed + 0.125}

    for seeds in (2, 3):
        runs = results.Runs(tmp_path / "runs.csv", ("seed",))
        for seed in range(seeds):
            runs.run(lambda seed=seed: make(seed), seed=seed)
    assert made == [0, 1, 2]
    assert [row["reward"] for row in results.Runs(tmp_path / "runs.csv", ("seed",)).rows] == [0.125, 1.125, 2.125]


# ---- the bandit --------------------------------------------------------------------------------------------------

UNEVEN = "uneven groups, balanced responses"


def test_bandit_rewards_by_hand() -> None:
    """x = (0, 1/2): cos (1, 0), sin (0, 1); action 4 scales by 1.5 and 1 / 1.5; both groups get the same reward."""
    bandit = program("bandit")
    x = torch.tensor([[0.0, 0.5]] * 2, dtype=torch.float64)
    group = torch.tensor([0, 1])
    phi = bandit.features(x, group)[:, 4]
    expected = torch.tensor([[1.5, 0, 0, 1 / 1.5], [0, 1.5, 1 / 1.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(phi, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        bandit.true_rewards(x, group)[:, 4], torch.full((2,), 1.5 + 3 / 1.5, dtype=torch.float64)
    )


def test_bandit_gradient_is_the_papers() -> None:
    """DPO with beta 1: the gradient is -mean((1 - sigmoid(d theta)) d), d the difference of the features."""
    bandit = program("bandit")
    data = bandit.draw(40, UNEVEN, 3, training=True)
    theta = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    phi = bandit.features(data.x, data.group)
    bandit.base_loss("DPO")(bandit.batch(theta, phi, data)).loss.mean().backward()
    difference = differences(phi, data)
    expected = -((1 - torch.sigmoid(difference @ theta.detach()))[:, None] * difference).mean(0)
    torch.testing.assert_close(theta.grad, expected, atol=1e-12, rtol=0)


def differences(phi: torch.Tensor, data: Any) -> torch.Tensor:
    rows = torch.arange(len(data.group))
    return phi[rows, data.chosen] - phi[rows, data.rejected]


@pytest.mark.parametrize(("method", "weight"), [("IPO", None), ("IS-IPO", (0.5, 0.5)), ("IS2-IPO", (0.8, 0.2))])
def test_bandit_ipo_ends_where_least_squares_does(method: str, weight: tuple[float, float] | None) -> None:
    """sum_i c_i (d_i theta - 1/2)^2 has its minimum at (D' C D)^-1 D' C 1/2; c_i = alpha_g N / N_g, or 1."""
    bandit = program("bandit")
    data = bandit.draw(100, UNEVEN, 0, training=True)
    *_, (_, theta, _) = bandit.train(method, data, steps=1500, points=1)
    d = differences(bandit.features(data.x, data.group), data)
    alpha = torch.tensor(weight or (0.2, 0.8), dtype=torch.float64)
    c = (alpha / torch.tensor([0.2, 0.8], dtype=torch.float64))[data.group]
    exact = torch.linalg.solve(d.T @ (c[:, None] * d), d.T @ c / 2)
    torch.testing.assert_close(theta, exact, atol=1e-6, rtol=0)


def test_bandit_program_repeats_itself(tmp_path: Path) -> None:
    """3 settings, 8 methods, 1 seed, 3 points of 30 steps; the first run made again gives the same numbers."""
    bandit = program("bandit")
    bandit.main(["--quick", "--seeds", "1", "--output", str(tmp_path)])
    rows = read(tmp_path / "repro_bandit.csv")
    assert len(rows) == 3 * 8 * 3
    again = bandit.measure("GR-IPO", UNEVEN, 0, pairs=300, steps=30)
    first = [row for row in rows if row["method"] == "GR-IPO" and row["setting"] == UNEVEN]
    for row, repeated in zip(first, again, strict=True):
        assert {name: f"{value:.6g}" for name, value in repeated.items()} == {name: row[name] for name in repeated}
    assert len(read(tmp_path / "repro_bandit_claims.csv")) == 3 * 2 * 2 * 3
    assert (tmp_path / "repro_bandit_300.png").stat().st_size > 10_000
