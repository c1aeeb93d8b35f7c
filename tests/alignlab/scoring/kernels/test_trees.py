"""Attention over trees equals dense attention under the trees' own masks, forward and backward."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from alignlab.data import attention_plan
from alignlab.scoring.kernels import UnsupportedAttention, tree_attention
from alignlab.scoring.packing import tree_mask


def dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    trees: Any,
    window: Any = None,
    chunk: Any = None,
    sinks: Any = None,
) -> torch.Tensor:
    """Softmax over the whole row with a mask of who sees whom; a sink is one more column, without a value."""
    tokens, heads = q.shape[:2]
    allow, start = torch.zeros(tokens, tokens, dtype=torch.bool), 0
    for tree in trees:
        end = start + sum(tree)
        allow[start:end, start:end] = tree_mask(tree, (window, chunk))
        start = end
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = scores.masked_fill(~allow, float("-inf"))
    if sinks is not None:
        scores = torch.cat([scores, sinks[:, None, None].expand(heads, tokens, 1)], -1)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., :tokens], v)


def draw(chance: random.Random, dtype: torch.dtype, longest: int) -> tuple[list[list[int]], list[torch.Tensor]]:
    """A ragged flat row: up to four trees of up to four completions; as many heads of keys, half, or one."""
    trees = [
        [chance.choice([1, 2, chance.randint(3, longest)])]
        + [chance.randint(1, longest) for _ in range(chance.randint(1, 4))]
        for _ in range(chance.randint(1, 4))
    ]
    heads, groups = chance.choice([(4, 4), (4, 2), (6, 1)])
    width = chance.choice([8, 16, 24])
    tokens, generator = sum(map(sum, trees)), torch.Generator().manual_seed(chance.randint(0, 2**31))
    tensors = [
        torch.randn(tokens, count, width, dtype=dtype, generator=generator, requires_grad=True)
        for count in (heads, groups, groups)
    ]
    return trees, [*tensors, torch.randn(heads, dtype=dtype, generator=generator, requires_grad=True)]


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_equals_dense_attention_over_200_layouts(dtype: torch.dtype, allowed: float) -> None:
    """Output and every gradient, relative to its largest entry; float32 against float64 of the same numbers."""
    chance = random.Random(0)
    for trial in range(200):
        trees, inputs = draw(chance, dtype, 200 if trial % 40 == 0 else 24)
        window = chance.choice([None, 2, 7])
        chunk = chance.choice([None, 5]) if window is None else None
        sinks = chance.random() < 0.5
        taken = inputs if sinks else inputs[:3]
        grad = torch.randn(inputs[0].shape, dtype=dtype, generator=torch.Generator().manual_seed(trial))
        q, k, v, sink = inputs
        plan = attention_plan(trees, chunk)
        out = tree_attention(q, k, v, plan, window=window, sinks=sink if sinks else None)
        found = [out, *torch.autograd.grad(out, taken, grad)]
        exact = [one.detach().double().requires_grad_(True) for one in taken]
        q, k, v = exact[:3]
        out = dense(q, k, v, trees, window, chunk, exact[3] if sinks else None)
        expected = [out, *torch.autograd.grad(out, exact, grad.double())]
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == dtype
            assert (one - other).abs().max() <= allowed * other.abs().max(), (trial, trees, window, chunk, sinks)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_no_more_than_dense_attention(dtype: torch.dtype, sinks: bool) -> None:
    """The error against float64 is at most 1.5 times that of dense attention by torch in the same precision.

    With sinks it is at most dense attention's own, also in the mean square: the output is rounded once. To torch a
    sink is one more key and value of zeros, whose score its mask adds.
    """
    chance, worst, squares = random.Random(1), torch.zeros(2), torch.zeros(2)
    for _ in range(20):
        trees, inputs = draw(chance, dtype, 60)
        q, k, v, sink = (one.detach() for one in inputs)
        exact = dense(q.double(), k.double(), v.double(), trees, sinks=sink.double() if sinks else None)
        mask = torch.block_diag(*[tree_mask(tree).float() for tree in trees]).log().to(dtype)
        query, key, value = (
            one.repeat_interleave(q.shape[1] // one.shape[1], 1).transpose(0, 1)[None] for one in (q, k, v)
        )
        if sinks:
            key, value = (torch.nn.functional.pad(one, (0, 0, 0, 1)) for one in (key, value))
            column = sink[None, :, None, None].expand(1, -1, len(q), 1)
            mask = torch.cat([mask.expand(1, len(sink), -1, -1), column], -1)
        plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)[0].transpose(0, 1)
        ours = tree_attention(q, k, v, attention_plan(trees), sinks=sink if sinks else None)
        errors = [(one - exact).float() for one in (ours, plain)]
        worst = torch.maximum(worst, torch.stack([one.abs().max() for one in errors]))
        squares += torch.stack([one.square().sum() for one in errors])
    assert 0 < worst[0] <= (1.0 if sinks else 1.5) * worst[1]
    assert not sinks or squares[0] <= squares[1]


def test_gradients_of_copies_are_summed_in_float32() -> None:
    """A prompt of one token whose value 400 completions of one token copy, in bfloat16: its gradient is 1 + 400 / 2.

    All scores are equal, so that a completion's token gives half its weight to the prompt. Summed in bfloat16, a half
    added to 128 would be lost.
    """
    completions = 400
    q, k = (torch.zeros(1 + completions, 1, 8, dtype=torch.bfloat16) for _ in range(2))
    v = torch.zeros(1 + completions, 1, 8, dtype=torch.bfloat16, requires_grad=True)
    grad = torch.ones(1 + completions, 1, 8, dtype=torch.bfloat16)
    out = tree_attention(q, k, v, attention_plan([[1, *[1] * completions]]))
    (gradient,) = torch.autograd.grad(out, v, grad)
    assert (gradient[0] == 201).all()
    assert (gradient[1:] == 0.5).all()


def test_values_narrower_than_keys() -> None:
    """As in multi-head latent attention: padded with zeros, and equal to dense attention."""
    trees = [[5, 4, 3], [2, 6, 1]]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(21, 2, width, dtype=torch.float64, generator=generator) for width in (24, 24, 16))
    out = tree_attention(q, k, v, attention_plan(trees))
    torch.testing.assert_close(out, dense(q, k, v, trees), rtol=0, atol=1e-14)


def test_autocast_computes_as_it_does_in_torchs_own_attention() -> None:
    """Float32 queries and bfloat16 values, as norms under autocast leave them."""
    _, (q, k, v, _) = draw(random.Random(0), torch.float32, 9)
    plan = attention_plan([[q.shape[0] - 1, 1]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = tree_attention(q, k, v.bfloat16(), plan)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, tree_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), plan))


def test_at_most_two_graphs_over_six_ragged_batches() -> None:
    """Micro-batches of four pairs: the first graph is for its own sizes, the second for all."""
    torch._dynamo.reset()
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def layer(x: torch.Tensor, plan: Any) -> torch.Tensor:
        q, k, v = x.unflatten(-1, (3, 2, 8)).unbind(1)
        return tree_attention(q * 2, k, v, plan, window=6).flatten(1) + x[:, :16]

    chance = random.Random(3)
    for _ in range(6):
        trees = [[chance.randint(1, 30) for _ in range(3)] for _ in range(4)]
        x = torch.randn(sum(map(sum, trees)), 48, requires_grad=True)
        plan = attention_plan(trees)
        layer(x, plan).sum().backward()
        (gradient, x.grad) = (x.grad, None)
        q, k, v = x.unflatten(-1, (3, 2, 8)).unbind(1)
        (tree_attention(q * 2, k, v, plan, window=6).flatten(1) + x[:, :16]).sum().backward()
        torch.testing.assert_close(gradient, x.grad, rtol=0, atol=1e-5)
    assert counter.frame_count <= 2


def test_operators_are_what_torch_wants_of_them() -> None:
    """Schema, fakes and gradients as torch.library.opcheck tests them, with strides."""
    trees = [[3, 2, 4], [1, 1, 2]]
    _, (q, k, v, sinks) = draw(random.Random(0), torch.float32, 3)
    tokens, plan = 13, attention_plan(trees)
    q, k, v = (torch.randn(tokens, *one.shape[1:], requires_grad=True) for one in (q, k, v))
    for given in (sinks, None):
        torch.library.opcheck(
            torch.ops.alignlab.tree_attention.default, (q, k, v, given, plan.table, list(plan[1:]), 0.3, -1)
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(6, 3, 8), "v": torch.zeros(6, 3, 8)}, "attention of 4 heads over 3 of keys: not a multiple"),
        ({"k": torch.zeros(5, 2, 8)}, "queries .6, 4, 8., keys .5, 2, 8., values .6, 2, 8.: one row"),
        ({"v": torch.zeros(6, 2, 16)}, "as many keys as values, none wider"),
        ({"k": torch.zeros(6, 2, 8).double()}, "attention of torch.float32 queries, torch.float64 keys"),
        ({"sinks": torch.zeros(2)}, r"attention sinks \(2,\) for 4 heads"),
        ({"plan": attention_plan([[3, 2, 4]])}, "a plan of 9 tokens for a row of 6"),
        ({"plan": attention_plan([[3, 2, 1]])._replace(table=torch.zeros(9))}, "a plan of torch.float32 on cpu: int32"),
    ],
)
def test_what_kernels_would_take_and_get_wrong_is_refused(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"q": torch.zeros(6, 4, 8), "k": torch.zeros(6, 2, 8), "v": torch.zeros(6, 2, 8)}
    given |= {"plan": attention_plan([[3, 2, 1]]), "sinks": None} | change
    with pytest.raises(UnsupportedAttention, match=message):
        tree_attention(**given)
