"""Soft-capped attention over trees equals dense softmax under the trees' own masks, by both of its branches."""

from __future__ import annotations

import random
import shutil
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

from alignlab.data import attention_plan
from alignlab.scoring.kernels import UnsupportedAttention, block_mask, capped, capped_attention
from alignlab.scoring.kernels.capped import BLOCK, flex_capped
from alignlab.scoring.packing import tree_mask

CAP = 1.5  # scores of random queries have a spread of about one: it bites


def allowed(trees: list[list[int]], window: int | None = None, chunk: int | None = None) -> torch.Tensor:
    """Who sees whom in a flat row, ``[T, T]`` bool, tree by tree."""
    masks = [tree_mask(tree, (window, chunk)).float() for tree in trees]
    whole: torch.Tensor = torch.block_diag(*masks)
    return whole.bool()


def exact(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, allow: torch.Tensor) -> torch.Tensor:
    """Softmax of c tanh(s / c), written out in the dtype of its inputs."""
    heads = q.shape[1]
    k, v = (t.repeat_interleave(heads // t.shape[1], 1) for t in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * q.shape[-1] ** -0.5
    scores = (CAP * (scores / CAP).tanh()).masked_fill(~allow, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v)


def draw(chance: random.Random, longest: int, most: int = 4) -> list[list[int]]:
    """A ragged flat row: trees of one to ``most`` completions, prompts from one token."""
    return [
        [chance.choice([1, 2, chance.randint(3, longest)])]
        + [chance.randint(1, longest) for _ in range(chance.randint(1, most))]
        for _ in range(chance.randint(1, 4))
    ]


def tensors(trees: list[list[int]], heads: tuple[int, int], width: int, dtype: torch.dtype) -> list[torch.Tensor]:
    tokens, generator = sum(map(sum, trees)), torch.Generator().manual_seed(sum(map(sum, trees)))
    return [
        torch.randn(tokens, count, width, dtype=dtype, generator=generator, requires_grad=True)
        for count in (heads[0], heads[1], heads[1])
    ]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_equals_dense_attention_over_60_layouts(dtype: torch.dtype, most: float) -> None:
    """Output and every gradient, relative to its largest entry, with windows and chunks; against float64."""
    chance = random.Random(0)
    for trial in range(60):
        trees = draw(chance, 24)
        window = chance.choice([None, 2, 7])
        chunk = chance.choice([None, 5]) if window is None else None
        inputs = tensors(trees, chance.choice([(4, 4), (4, 2), (6, 1)]), chance.choice([8, 16]), dtype)
        out = capped_attention(inputs[0], inputs[1], inputs[2], attention_plan(trees, chunk), cap=CAP, window=window)
        grad = torch.randn(out.shape, dtype=dtype, generator=torch.Generator().manual_seed(trial))
        found = [out, *torch.autograd.grad(out, inputs, grad)]
        leaves = [one.detach().double().requires_grad_(True) for one in inputs]
        out = exact(leaves[0], leaves[1], leaves[2], allowed(trees, window, chunk))
        for one, other in zip(found, [out, *torch.autograd.grad(out, leaves, grad.double())], strict=True):
            assert one.dtype == dtype
            assert (one - other).abs().max() <= most * other.abs().max(), (trial, trees, window, chunk)


@pytest.mark.parametrize(("window", "chunk"), [(None, None), (150, None), (None, 170)])
def test_blocks_are_those_that_hold_a_pair_seen_and_no_other(window: int | None, chunk: int | None) -> None:
    """Over 30 random rows: computed at all where any pair is seen; without a mask only where all are."""
    chance = random.Random(1)
    for _ in range(30):
        trees = draw(chance, 300)
        dense, tokens = allowed(trees, window, chunk), sum(map(sum, trees))
        count = -(-tokens // BLOCK)
        padded = torch.zeros(count * BLOCK, count * BLOCK, dtype=torch.bool)
        padded[:tokens, :tokens] = dense
        tiles = padded.view(count, BLOCK, count, BLOCK)
        mask = block_mask(attention_plan(trees, chunk), window)
        assert mask.full_kv_num_blocks is not None
        assert mask.full_kv_indices is not None
        partial, full = (
            torch.zeros(count, count, dtype=torch.bool).scatter_(
                1, order[0, 0].long(), torch.arange(count) < numbers[0, 0, :, None]
            )
            for numbers, order in (
                (mask.kv_num_blocks, mask.kv_indices),
                (mask.full_kv_num_blocks, mask.full_kv_indices),
            )
        )
        assert torch.equal(partial | full, tiles.any(3).any(1))
        assert not (partial & full).any()
        assert not (full & ~tiles.all(3).all(1)).any()
        places = torch.arange(tokens)
        assert torch.equal(mask.mask_mod(places, places, places[:, None], places[None]), dense)
    assert full.any() or window or chunk, "the last row has blocks that need no mask"


def test_flex_attention_equals_dense_attention() -> None:
    """Its forward, which is all that a CPU has of it, in float32 against float64, over ragged rows."""
    chance = random.Random(2)
    with torch.no_grad():
        for window, chunk in ((None, None), (40, None), (None, 50)):
            trees = draw(chance, 150, 2)
            q, k, v = (one.detach() for one in tensors(trees, chance.choice([(4, 4), (4, 2)]), 16, torch.float32))
            blocks = block_mask(attention_plan(trees, chunk), window)
            rows = [one.transpose(0, 1)[None] for one in (q, k, v)]
            out = flex_capped(rows[0], rows[1], rows[2], blocks, 0.25, CAP)[0].transpose(0, 1)
            expected = exact(q.double(), k.double(), v.double(), allowed(trees, window, chunk))
            assert (out - expected).abs().max() <= 2e-6 * expected.abs().max(), (trees, window, chunk)


def test_blocks_need_neither_values_nor_a_mask_of_the_row() -> None:
    """On tensors without storage: nothing asks for a number, and nothing has the row's length squared."""
    trees = [[700, 300, 200], [5, 900, 40]]
    made: list[int] = []

    class Seen(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(one.numel() for one in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(one))
            return result

    plan = attention_plan(trees)
    with FakeTensorMode() as fake:
        plan = plan._replace(table=fake.from_tensor(plan.table))
        with Seen():
            mask = block_mask(plan, 100)
    assert mask.kv_indices.shape == (1, 1, 17, 17), "2,145 tokens"
    assert max(made) == 17 * 17 * BLOCK, "a number for each token and block of keys"


def test_what_it_cannot_do_is_refused() -> None:
    plan = attention_plan([[5, 4, 3]])
    q, k, v = (torch.zeros(12, 4, 8) for _ in range(3))
    with pytest.raises(UnsupportedAttention, match="a plan of 12 tokens for a row of 11"):
        capped_attention(q[1:], k[1:], v[1:], plan, cap=CAP)
    assert capped_attention(q, k, v[..., :4], plan, cap=CAP).shape == (12, 4, 4)


@pytest.mark.slow
@pytest.mark.compiler
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler (c++), found none")
def test_few_compiled_kernels_take_every_length_window_and_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap captured as a number would stop the compiler where it changes, as from a twin's to its model's."""
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(capped, "flex_attention", compiled)
    counts = []
    with torch.no_grad():
        for trees, window, cap in (
            ([[130, 7, 250]], None, 1.0),
            ([[300, 20], [5, 5, 5]], 60, 50.0),
            ([[177, 33, 12]], 20, 0.7),
        ):
            plan = attention_plan(trees)
            q, k, v = (torch.randn(1, heads, plan.tokens, 16) for heads in (4, 2, 2))
            out = flex_capped(q, k, v, block_mask(plan, window), 0.25, cap)
            expected = capped.dense_capped(q.double(), k.double(), v.double(), allowed(trees, window), 0.25, cap)
            assert (out - expected).abs().max() <= 2e-6 * expected.abs().max()
            counts.append(counter.frame_count)
    assert counts[1] == counts[2] <= 3, "graphs settle by the second row"
