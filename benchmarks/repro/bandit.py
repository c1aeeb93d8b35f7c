"""The log-linear bandit of group-robust optimisation: DPO and IPO, plain, importance-weighted and group-robust.

    python benchmarks/repro/bandit.py [--quick] [--seeds 10] [--output runs/repro]

Ramesh et al. 2024 (arXiv:2405.20304, section 5.1): states x of the unit square, 8 actions, and two groups that want the
same of a state but see its features swapped, so that their true parameters differ where the policy has only one vector
for both. The losses are those of the package, on pairs whose log-probabilities come from the policy directly. ``IS``
gives every group the same say (a row of group g weighs N / N_g); ``IS2`` is ``weighting: importance``, which weighs the
groups' means by 1 / N_g on top of that.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import results
import torch
from torch import Tensor

from alignlab import losses

ACTIONS, SIZES, VALIDATION, STATES = 8, (300, 3000), 4000, 4000
TRUE = ((1.0, 3.0, 1.0, 3.0), (3.0, 1.0, 3.0, 1.0))  # parameters of the rewards of the groups
SETTINGS = {  # share of group 0, share of its pairs that compare neighbouring actions only
    "uneven groups, balanced responses": (0.2, 0.0),
    "uneven groups, imbalanced responses": (0.2, 0.9),
    "even groups, imbalanced responses": (0.5, 0.9),
}
WEIGHTINGS = {
    "": None,
    "IS-": {"weighting": "fixed"},
    "IS2-": {"weighting": "importance"},
    "GR-": {"weighting": "adaptive", "step_size": 0.5},
}
METHODS = tuple(prefix + base for base in ("DPO", "IPO") for prefix in WEIGHTINGS)
STEPS, QUICK_STEPS, LEARNING_RATE, LOGGED = 1500, 30, 0.02, 5


@dataclass
class Data:
    """Pairs: states ``x [N, 2]``, group, chosen and rejected actions ``[N]``."""

    x: Tensor
    group: Tensor
    chosen: Tensor
    rejected: Tensor


def features(x: Tensor, group: Tensor) -> Tensor:
    """Returns phi(x, y, g) of every action, ``[N, 8, 4]``: per coordinate (1 + y/8) cos(pi x), sin(pi x) / (1 + y/8).

    The groups see both in swapped order.
    """
    scale = 1 + torch.arange(ACTIONS, dtype=x.dtype)[None, :, None] / ACTIONS
    first, second = scale * torch.cos(math.pi * x)[:, None], torch.sin(math.pi * x)[:, None] / scale
    plain, swapped = (torch.stack(both, -1).flatten(-2) for both in ((first, second), (second, first)))
    return torch.where((group == 0)[:, None, None], plain, swapped)


def true_rewards(x: Tensor, group: Tensor) -> Tensor:
    """Returns the reward of every action, ``[N, 8]``."""
    return (features(x, group) * torch.tensor(TRUE, dtype=x.dtype)[group][:, None]).sum(-1)


def draw(count: int, setting: str, seed: int, *, training: bool) -> Data:
    """Draws pairs of random actions, labelled as Bradley and Terry have it; groups are even in validation."""
    random = torch.Generator().manual_seed(2 * seed + training)
    share, close = SETTINGS[setting]
    group = (torch.arange(count) >= (share if training else 0.5) * count).long()
    x = torch.rand(count, 2, generator=random, dtype=torch.float64)
    one = torch.randint(ACTIONS, (count,), generator=random)
    other = (one + torch.randint(1, ACTIONS, (count,), generator=random)) % ACTIONS
    if training:
        neighbours = (torch.rand(count, generator=random) < close) & (group == 0)
        other = torch.where(neighbours, torch.where(one > 0, one - 1, one + 1), other)
    reward = true_rewards(x, group)
    gap = (reward.gather(1, one[:, None]) - reward.gather(1, other[:, None]))[:, 0]
    wins = torch.rand(count, generator=random, dtype=torch.float64) < torch.sigmoid(gap)
    return Data(x, group, torch.where(wins, one, other), torch.where(wins, other, one))


def batch(theta: Tensor, phi: Tensor, data: Data) -> losses.Pairs:
    """Returns the pairs under the policy pi(y | x, g) = softmax(phi theta) and a uniform reference."""
    logps = torch.log_softmax(phi @ theta, -1)

    def scored(action: Tensor) -> losses.Scored:
        own = logps.gather(1, action[:, None])
        return losses.Scored(own, torch.ones_like(own, dtype=torch.bool), torch.full_like(own, -math.log(ACTIONS)))

    return losses.Pairs(scored(data.chosen), scored(data.rejected), group=data.group)


def base_loss(name: str) -> losses.Loss:
    """Returns DPO or IPO, both with beta 1."""
    return losses.build(
        {"name": "dpo", "beta": 1.0} if name == "DPO" else {"name": "ipo", "beta": 1.0, "normalise": "sum"}
    )


def method_loss(method: str, data: Data) -> losses.Loss:
    """Returns the loss of a method, which knows the groups of the data."""
    prefix, base = method[:-3], base_loss(method[-3:])
    weighting = WEIGHTINGS[prefix]
    loss = base if weighting is None else losses.build({"name": "group_robust", "base": base, **weighting})
    sizes = {str(name): int((data.group == name).sum()) for name in (0, 1)}
    loss.bind(losses.Facts(len(data.group), groups=sizes))
    return loss.train()


def train(method: str, data: Data, steps: int, points: int) -> Iterator[tuple[int, Tensor, losses.Loss]]:
    """Descends the gradient over all pairs; yields (step, parameters, loss) at evenly spaced steps to the last."""
    theta = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    loss, phi = method_loss(method, data), features(data.x, data.group)
    optimiser = torch.optim.Adam([theta], lr=LEARNING_RATE)
    for step in range(1, steps + 1):
        pairs = batch(theta, phi, data)
        totals = loss.totals(pairs)
        optimiser.zero_grad()
        loss(pairs, totals).loss.mean().backward()
        optimiser.step()
        loss.update(totals)
        if step % (steps // points) == 0:
            yield step, theta.detach().clone(), loss


def group_losses(theta: Tensor, base: losses.Loss, data: Data) -> list[float]:
    """Returns the mean loss of each group."""
    with torch.no_grad():
        each = base(batch(theta, features(data.x, data.group), data)).loss
    return [float(each[data.group == group].mean()) for group in (0, 1)]


def reward_errors(theta: Tensor, seed: int) -> list[float]:
    """Returns by how much the action that the policy likes best falls short of the best one's reward, by group."""
    x = torch.rand(STATES, 2, generator=torch.Generator().manual_seed(1000 + seed), dtype=torch.float64)
    errors = []
    for group in (torch.zeros(STATES, dtype=torch.long), torch.ones(STATES, dtype=torch.long)):
        reward, policy = true_rewards(x, group), features(x, group) @ theta
        taken = reward.gather(1, policy.argmax(1, keepdim=True))[:, 0]
        errors.append(float((reward.max(1).values - taken).mean()))
    return errors


def measure(method: str, setting: str, seed: int, pairs: int, steps: int) -> list[results.Row]:
    """Trains one method; returns worst-group validation loss and reward error over training."""
    data, held_out = (
        draw(count, setting, seed, training=training) for count, training in ((pairs, True), (VALIDATION, False))
    )
    base, rows = base_loss(method[-3:]), []
    for step, theta, loss in train(method, data, steps, min(LOGGED, steps // 10)):
        validation, errors = group_losses(theta, base, held_out), reward_errors(theta, seed)
        weights = getattr(loss, "weights", torch.tensor([math.nan]))
        rows.append(
            {
                "step": step,
                "worst_loss": max(validation),
                "loss_0": validation[0],
                "loss_1": validation[1],
                "worst_reward_error": max(errors),
                "reward_error_0": errors[0],
                "reward_error_1": errors[1],
                "weight_0": float(weights[0]),
            }
        )
    return rows


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words, seeds=10)
    torch.set_num_threads(1)
    steps = QUICK_STEPS if chosen.quick else STEPS
    sizes = SIZES[:1] if chosen.quick else SIZES
    runs = results.Runs(chosen.output / "repro_bandit.csv", ("pairs", "setting", "method", "seed"))
    for pairs, setting, method, seed in product(sizes, SETTINGS, METHODS, range(chosen.seeds)):
        key = {"pairs": pairs, "setting": setting, "method": method, "seed": seed}
        runs.run(lambda key=key: measure(**key, steps=steps), **key)
    conclude(runs, sizes, steps, chosen)
    return runs


def conclude(runs: results.Runs, sizes: Sequence[int], steps: int, chosen: argparse.Namespace) -> None:
    """Writes the claims and the figures: each method against the group-robust form of its base."""
    claims = results.Claims()
    words = {"worst_loss": "worst-group validation loss", "worst_reward_error": "worst-group reward error"}
    for pairs, setting, base, column in product(sizes, SETTINGS, ("DPO", "IPO"), words):
        ends = {m: [r[column] for r in runs.pick(pairs=pairs, setting=setting, method=m, step=steps)] for m in METHODS}
        if len({len(values) for values in ends.values()}) > 1 or not ends[base]:
            continue  # stopped within this setting
        for other in (base, f"IS-{base}", f"IS2-{base}"):
            differences = [a - b for a, b in zip(ends[other], ends[f"GR-{base}"], strict=True)]
            claims.add(f"{pairs} pairs, {setting}: {words[column]} of {other} less that of GR-{base}", differences)
    claims.write(chosen.output / "repro_bandit_claims.csv")
    for pairs in sizes:
        draw_figure(runs, pairs, chosen.output)


def draw_figure(runs: results.Runs, pairs: int, folder: Path) -> None:
    """Draws worst-group losses and reward error over training, a column of panels for each setting."""
    figure, axes = results.panels(len(SETTINGS), 3)
    wanted = product((("DPO", "worst_loss"), ("IPO", "worst_loss"), ("", "worst_reward_error")), SETTINGS)
    for axis, ((base, column), setting) in zip(axes, wanted, strict=True):
        for method in METHODS:
            if method.endswith(base):
                rows = runs.pick(pairs=pairs, setting=setting, method=method)
                if rows:
                    results.band(axis, rows, "step", column, method)
        what = f"{base} loss, held out" if base else "reward error"
        axis.set_title(f"{setting}\nworst-group {what}", fontsize=8)
        axis.legend(fontsize=6, loc="upper right")
    figure.suptitle(f"{pairs} pairs: mean and 95% interval over seeds", fontsize=10)
    results.save(figure, folder / f"repro_bandit_{pairs}.png")


if __name__ == "__main__":
    main()
