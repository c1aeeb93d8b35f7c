"""The contract of a loss as checks that any loss can be put through: ours in the tests, yours on the command line."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ._base import Batch, Labelled, Listed, Loss, LossOutput, Totals
from ._examples import (
    HOLE,
    LIST,
    ROWS,
    completions,
    example_batch,
    example_facts,
    fill,
    mapped,
    pollute,
    rearranged,
    take,
)
from ._returned import REWARDS, faults, place


@dataclass(frozen=True)
class Finding:
    """One breach of the contract: which check, what was found on which input, and whether training is impossible."""

    check: str
    message: str
    fatal: bool = False

    def __str__(self) -> str:
        return f"{self.check}: {self.message}"


def check(loss: Loss) -> list[Finding]:
    """Puts ``loss`` through the contract; returns what failed, and nothing where all is well.

    Where ``forward`` returns what no other check could look at, only that is found.

    Checked: shapes and dtypes, detached rewards and metrics, finite values and gradients at extremes, half precision,
    gradients against finite differences in float64, invariance to padding, row order, garbage under the mask, and to
    the order and the holes of lists, totals that add over rows, a pure forward, state that survives a round trip.
    ``loss`` itself is left as it is.
    """
    if unusable := _unusable(loss):
        return unusable
    findings = []
    for name, breaches in CHECKS.items():
        try:
            findings += [Finding(name, message) for message in breaches(prepared(loss))]
        except (Exception, SystemExit) as error:  # a script's habits must not end the run unsaid
            findings.append(_raised(name, error, loss))
    return findings


def _unusable(loss: Loss) -> list[Finding]:
    """Returns what is wrong with what ``forward`` returns, where no other check could look at it."""
    batch = example_batch(loss.needs, dtype=torch.float32)
    try:
        out = prepared(loss).forward(batch, None)
    except (Exception, SystemExit):
        return []  # each check says so, with the error that it meets
    like = next(completions(batch)).leading
    return [Finding("shapes", f"{place(loss)}: {one}", fatal=True) for one in faults(out, like, LossOutput)]


def _raised(check: str, error: Exception | SystemExit, loss: Loss) -> Finding:
    """Returns the finding for an error, with the line of the loss's own file; one of ``bind`` may be the example's."""
    own = place(loss).rpartition(":")[0]
    frames = traceback.extract_tb(error.__traceback__)
    lines = [one.lineno for one in frames if one.filename == own]
    where = f" ({own}:{lines[-1]})" if lines else ""
    in_forward = any(one.name != "prepared" for one in frames if one.name in ("prepared", "forward"))
    return Finding(check, f"raised {type(error).__name__}: {error}{where}", fatal=check == "shapes" and in_forward)


def prepared(loss: Loss) -> Loss:
    """Returns a copy of ``loss``, in training mode, bound to the facts of ``example_batch``."""
    loss = copy.deepcopy(loss).train()
    loss.bind(example_facts(loss.needs))
    return loss


def _leaves(batch: Batch) -> dict[str, Tensor]:
    """Returns the tensors of the completions that take a gradient, by the field of ``Scored`` and a number."""
    return {
        f"{name}.{index}": value
        for index, scored in enumerate(completions(batch))
        for name in ("logps", "kl", "prompt_logps", "values")
        if (value := getattr(scored, name)) is not None and value.requires_grad
    }


def _gradients(loss: Loss, batch: Batch, totals: Totals | None = None) -> tuple[LossOutput, dict[str, Tensor]]:
    """Returns the output and the gradients of the mean loss."""
    out = loss(batch, totals)
    leaves = _leaves(batch)
    values = torch.autograd.grad(out.loss.mean(), list(leaves.values()), allow_unused=True, materialize_grads=True)
    return out, dict(zip(leaves, values, strict=True))


def _differs(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> str:
    """Returns what to say where two tensors are not close, else an empty text."""
    if found.shape != expected.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    found, expected = found.detach(), expected.detach().to(found)
    if torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
        return ""
    wrong = ~torch.isclose(found, expected, rtol=tolerance, atol=tolerance)
    first = tuple(wrong.nonzero()[0].tolist())
    place = f" at {list(first)} ({int(wrong.sum())} of {wrong.numel()} differ)" if first else ""
    return f"{found[first].item():.6g}{place}, expected {expected[first].item():.6g}"


# ---- checks: each yields what failed -----------------------------------------------------------------------------


def shapes(loss: Loss) -> Iterator[str]:
    """A float32 batch gives ``[N]`` float32 losses with gradient, detached rewards and 0-dim metrics."""
    batch = example_batch(loss.needs, dtype=torch.float32)
    out = loss(batch, None)
    if out.loss.dtype != torch.float32:
        yield f"the loss of float32 scores must be float32, found {out.loss.dtype}"
    for name in REWARDS:
        rewards = getattr(out, name)
        if rewards is not None and rewards.requires_grad:
            yield f"{name} must be detached"
    for name, values in out.metrics.items():
        if any(value.requires_grad for value in values):
            yield f"metrics[{name!r}] must be detached"


def finite(loss: Loss) -> Iterator[str]:
    """Values and gradients are finite for certain, impossible and very long completions in float32."""
    for policy, reference in ((-1e-8, -50.0), (0.0, 0.0), (-50.0, -1e-8), (-1e3, -1e3)):
        batch = example_batch(loss.needs, dtype=torch.float32)
        fill(batch, policy, reference)
        out, gradients = _gradients(loss, batch)
        if not out.loss.isfinite().all():
            yield f"loss {out.loss.tolist()} for log-probabilities {policy:g} under the policy, {reference:g} elsewhere"
        if not all(gradient.isfinite().all() for gradient in gradients.values()):
            yield f"gradient is not finite for log-probabilities {policy:g} under the policy, {reference:g} elsewhere"


def half_precision(loss: Loss) -> Iterator[str]:
    """bfloat16 scores are upcast: the loss is that of the same numbers in float32."""
    batch = mapped(example_batch(loss.needs), lambda v: v.bfloat16() if v.is_floating_point() else v)
    upcast = mapped(batch, lambda v: v.float() if v.is_floating_point() else v)
    found, expected = loss(batch, None).loss, loss(upcast, None).loss
    if found.dtype != torch.float32:
        yield f"bfloat16 scores give a loss in {found.dtype}, expected float32"
    if message := _differs(found, expected, 1e-6):
        yield f"bfloat16 scores give {message} as in float32"


def gradient(loss: Loss) -> Iterator[str]:
    """Autograd agrees with finite differences in float64, at fixed totals."""
    batch = example_batch(loss.needs, rows=3)
    totals = loss.totals(batch)
    _, gradients = _gradients(loss, batch, totals)
    for name, leaf in _leaves(batch).items():
        if name.split(".")[0] in loss.stops_gradient:
            continue
        expected = torch.zeros_like(leaf)
        for index in range(leaf.numel()):
            expected.view(-1)[index] = _slope(loss, batch, totals, leaf, index)
        scale = max(1.0, float(expected.abs().max()))
        if message := _differs(gradients[name] / scale, expected / scale, 1e-5):
            yield (
                f"the gradient of {name} is {message} by finite differences; if the formula stops it on purpose,"
                f" name the field in stops_gradient"
            )


def _slope(loss: Loss, batch: Batch, totals: Totals, leaf: Tensor, index: int, step: float = 1e-5) -> float:
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            before = float(leaf.view(-1)[index])
            leaf.view(-1)[index] = before + sign * step
            values.append(float(loss(batch, totals).loss.mean()))
            leaf.view(-1)[index] = before
    return (values[0] - values[1]) / (2 * step)


def padding(loss: Loss) -> Iterator[str]:
    """Masked positions, appended or in between, change nothing, NaN and inf included."""
    plain = example_batch(loss.needs)
    expected, slopes = _gradients(loss, plain)
    for garbage in (float("nan"), float("inf"), -float("inf")):
        batch = example_batch(loss.needs)
        mismatched = batch.mismatched if isinstance(batch, Labelled) else None
        for scored in (*completions(batch), *([mismatched] if mismatched else [])):
            pollute(scored, garbage)
        out, gradients = _gradients(loss, batch)
        if message := _differs(out.loss, expected.loss):
            yield f"{garbage} under the mask changes the loss to {message}"
        for name, found in gradients.items():
            width = slopes[name].shape[-1]
            if _differs(found[..., :width], slopes[name]) or found[..., width:].any():
                yield f"{garbage} under the mask changes the gradient of {name}"


def row_order(loss: Loss) -> Iterator[str]:
    """Shuffled rows give shuffled losses."""
    batch = example_batch(loss.needs)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1))
    expected, found = loss(batch, None).loss, loss(take(batch, order), None).loss
    if loss.needs.coupled == "micro_batch":  # rows may be matched anew, so only the sum is comparable
        expected, found = expected.sum(), found.sum()
    else:
        expected = expected[order]
    if message := _differs(found, expected):
        yield f"shuffled rows give {message}"


def lists(loss: Loss) -> Iterator[str]:
    """The completions of a list in another order, and holes between them, change neither losses nor gradients."""
    batch = example_batch(loss.needs)
    if not isinstance(batch, Listed):
        return
    expected, slopes = _gradients(loss, batch)
    orders = {"order": [2, 0, 3, 1], "holes": [HOLE, 0, 1, HOLE, 2, 3]}
    for name, order in orders.items():
        out, gradients = _gradients(loss, rearranged(batch, order))
        kept = [order.index(place) for place in range(LIST)]
        if message := _differs(out.loss, expected.loss):
            yield f"{name} of a list's completions: the loss is {message}"
        if out.rewards is not None and expected.rewards is not None:
            seen = batch.present
            if message := _differs(out.rewards[:, kept][seen], expected.rewards[seen]):
                yield f"{name} of a list's completions: a reward is {message}"
        for leaf, found in gradients.items():
            if message := _differs(found[:, kept] if found.dim() > 2 else found, slopes[leaf]):
                yield f"{name} of a list's completions: the gradient of {leaf} is {message}"


def totals_add(loss: Loss) -> Iterator[str]:
    """Totals are detached, zero for no rows, and add over rows; with their sums, a split changes no row's loss."""
    batch = example_batch(loss.needs)
    whole = loss.totals(batch)
    parts = [take(batch, torch.arange(start, stop)) for start, stop in ((0, 4), (4, 6), (6, 8))]
    summed: Totals = {}
    for part in [*parts, take(batch, torch.arange(0))]:
        for name, value in loss.totals(part).items():
            if value.requires_grad:
                yield f"totals[{name!r}] must be detached"
            summed[name] = summed[name] + value if name in summed else value
    for name, value in loss.totals(take(batch, torch.arange(0))).items():
        if value.any() or value.shape != whole[name].shape:
            yield f"totals[{name!r}] of no rows must be zeros {list(whole[name].shape)}, found {value.tolist()}"
    if whole.keys() != summed.keys():
        yield f"totals are {sorted(whole)} of all rows, but {sorted(summed)} of parts"
        return
    if loss.needs.coupled == "micro_batch":
        return
    for name, value in whole.items():
        if message := _differs(summed[name], value):
            yield f"totals[{name!r}] of 4 + 2 + 2 rows is {message} as of 8 rows"
    if loss.needs.coupled == "step" and not loss.needs.totals_in_evaluation:
        loss.eval()
        alone = torch.cat([loss(part, None).loss for part in parts])
        if message := _differs(alone, loss(batch, None).loss):
            yield f"in evaluation 4 + 2 + 2 rows give {message} as of 8 rows: `needs.totals_in_evaluation` must be True"
        loss.train()
    found = torch.cat([loss(part, summed).loss for part in parts])
    if message := _differs(found, loss(batch, None).loss):
        yield f"4 + 2 + 2 rows with summed totals give {message} as of 8 rows; is `needs.coupled` right?"


def state(loss: Loss) -> Iterator[str]:
    """A forward moves no state; state after an update survives state_dict; evaluation leaves it as it is."""
    batch = example_batch(loss.needs)
    before, restored = copy.deepcopy(loss.state_dict()), copy.deepcopy(loss)
    totals = loss.totals(batch)
    loss(batch, totals)
    if _changed(before, loss.state_dict()):
        yield f"forward or totals moved the state {_changed(before, loss.state_dict())}; move it in update"
    loss.update(totals)
    restored.load_state_dict(loss.state_dict())
    other = example_batch(loss.needs, seed=1)
    if message := _differs(restored(other, None).loss, loss(other, None).loss, 0.0):
        yield f"after a round trip of state_dict the loss is {message}; is some state no buffer?"
    loss.eval()
    moved = copy.deepcopy(loss.state_dict())
    loss(other, None)
    if _changed(moved, loss.state_dict()):
        yield f"evaluation moved the state {_changed(moved, loss.state_dict())}"


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    return [name for name, value in after.items() if not torch.equal(before[name], value)]


CHECKS: dict[str, Callable[[Loss], Iterator[str]]] = {
    "shapes": shapes,
    "finite": finite,
    "half precision": half_precision,
    "gradient": gradient,
    "padding": padding,
    "row order": row_order,
    "lists": lists,
    "totals": totals_add,
    "state": state,
}
