"""Part attention: the kernel over trees against float64, and its time beside repeated prompts and a dense mask.

An error is the largest difference of the output or of a gradient from dense attention in float64 on the same numbers,
relative to the largest entry; the yardstick is what dense attention itself errs in the same dtype. Times are of one
forward and backward of one layer of the 8B shape over a micro-batch of eight pairs.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_parts import common
from gpu_parts.common import Bench, Profile

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "window": {"window": 37},
    "chunks": {"chunk": 50},
    "sinks": {"sinks": True},
    "soft-cap": {"cap": 1.5},
    "soft-cap, window": {"cap": 1.5, "window": 37},
}
LAYOUTS = 50  # random ragged rows a variant: 300 a dtype
DENSE = 16_384  # tokens above which no dense mask is tried
Trees = list[list[int]]


def run(bench: Bench) -> list[dict[str, Any]]:
    """Returns a row a dtype and variant with the errors, then a row a profile of lengths with the times."""
    rows = []
    dtypes = (torch.bfloat16, torch.float16) if bench.gpu else (torch.float32,)
    for name in bench.wanted([*VARIANTS, *bench.profiles]):
        if not bench.time_left(name):
            continue
        with common.emptied(bench.device):
            found = [_errors(bench, name, dtype) for dtype in dtypes] if name in VARIANTS else [_times(bench, name)]
        for row in found:
            common.report(name, row)
        rows += found
    return rows


# ---- errors ----------------------------------------------------------------------------------------------------------


def _errors(bench: Bench, name: str, dtype: torch.dtype) -> dict[str, Any]:
    """Returns the largest errors over random layouts, of the kernel and of dense attention."""
    chance, options = random.Random(0), VARIANTS[name]
    worst = {"kernel": 0.0, "dense": 0.0}
    for trial in range(LAYOUTS if bench.gpu else 4):
        trees = [
            [
                chance.choice([1, 2, chance.randint(3, 200)]),
                *(chance.randint(1, 180) for _ in range(chance.randint(1, 4))),
            ]
            for _ in range(chance.randint(1, 5))
        ]
        heads, keys = chance.choice([(8, 8), (8, 2), (6, 1)])
        inputs, grad = _inputs(bench, trees, (heads, keys, chance.choice([64, 128])), dtype, trial)
        inputs = inputs if options.get("sinks") else inputs[:3]
        seen = trees, options.get("window"), options.get("chunk"), options.get("cap")
        exact = _gradients(partial(_dense, *seen), [one.double() for one in inputs], grad.double())
        dense, kernel = (_gradients(partial(side, *seen), inputs, grad) for side in (_dense, _kernel))
        for side, found in (("kernel", kernel), ("dense", dense)):
            errors = [float((a.double() - b).abs().max() / b.abs().max()) for a, b in zip(found, exact, strict=True)]
            worst[side] = max(worst[side], *errors)
    return {
        "what": name,
        "dtype": str(dtype).removeprefix("torch."),
        "error of the kernel": f"{worst['kernel']:.1e}",
        "error of dense attention": f"{worst['dense']:.1e}",
        "ratio": round(worst["kernel"] / worst["dense"], 2),
    }


def _inputs(
    bench: Bench, trees: Trees, shape: tuple[int, int, int], dtype: torch.dtype, seed: int
) -> tuple[list[Tensor], Tensor]:
    """Returns queries, keys, values and sinks, and a gradient of the output."""
    heads, keys, width = shape
    tokens, generator = sum(map(sum, trees)), torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator).to(bench.device, dtype)

    return [draw(tokens, n, width) for n in (heads, keys, keys)] + [draw(heads)], draw(tokens, heads, width)


def _gradients(attention: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Returns the output and the gradient of every input."""
    leaves = [one.detach().requires_grad_() for one in inputs]
    out = attention(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _kernel(trees: Trees, window: Any, chunk: Any, cap: Any, q: Tensor, k: Tensor, v: Tensor, *sinks: Tensor) -> Tensor:
    from alignlab.data import attention_plan
    from alignlab.scoring.kernels import capped_attention, tree_attention

    plan = attention_plan(trees, chunk)
    plan = plan._replace(table=plan.table.to(q.device))
    if cap is not None:
        return capped_attention(q, k, v, plan, cap=cap, window=window)
    return tree_attention(q, k, v, plan, window=window, sinks=sinks[0] if sinks else None)


def _dense(trees: Trees, window: Any, chunk: Any, cap: Any, q: Tensor, k: Tensor, v: Tensor, *sinks: Tensor) -> Tensor:
    """Softmax in the dtype's own products over the whole row under its mask; sums in float32, as flash kernels do."""
    allow = _mask(trees, window, chunk, q.device)
    k, v = (one.repeat_interleave(q.shape[1] // one.shape[1], 1) for one in (k, v))
    if not sinks and cap is None:
        return F.scaled_dot_product_attention(
            *(one.transpose(0, 1)[None] for one in (q, k, v)), attn_mask=allow[None, None]
        )[0].transpose(0, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~allow, float("-inf"))
    if sinks:
        column = sinks[0][:, None, None].expand(-1, q.shape[0], 1).to(scores.dtype)
        scores = torch.cat([scores, column], -1)
    weights = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", weights.to(v.dtype), v)


def _mask(trees: Trees, window: Any, chunk: Any, device: torch.device) -> Tensor:
    from alignlab.scoring.packing import tree_mask

    return torch.block_diag(*(tree_mask(tree, (window, chunk), device) for tree in trees)).bool()


# ---- times -----------------------------------------------------------------------------------------------------------


def _times(bench: Bench, name: str) -> dict[str, Any]:
    """Returns milliseconds of a layer's forward and backward: the kernel, repeated prompts, a dense mask."""
    profile: Profile = replace(bench.profiles[name], pairs=8)
    trees = [list(one) for one in common.lengths(profile, 8 if bench.gpu else 2)]
    shape = (32, 8, 128) if bench.gpu else (4, 2, 16)
    dtype = torch.bfloat16 if bench.gpu else torch.float32
    inputs, grad = _inputs(bench, trees, shape, dtype, 0)
    inputs = inputs[:3]
    repeated = [[prompt + one] for prompt, *completions in trees for one in completions]
    doubled, doubled_grad = _inputs(bench, repeated, shape, dtype, 1)
    tokens = len(inputs[0])
    sides: dict[str, Callable[[], Any]] = {
        "kernel": lambda: _gradients(partial(_kernel, trees, None, None, None), inputs, grad),
        "repeated prompts": lambda: _gradients(partial(_kernel, repeated, None, None, None), doubled[:3], doubled_grad),
    }
    if tokens <= DENSE:
        sides["dense mask"] = lambda: _gradients(partial(_dense, trees, None, None, None), inputs, grad)
    row: dict[str, Any] = {"what": name, "dtype": str(dtype).removeprefix("torch."), "tokens": tokens}
    for side, work in sides.items():
        row[f"ms {side}"] = round(1e3 * common.seconds_of(work, bench.device), 3)
    for side in list(sides)[1:]:
        row[f"{side} / kernel"] = round(row[f"ms {side}"] / row["ms kernel"], 2)
    return row
