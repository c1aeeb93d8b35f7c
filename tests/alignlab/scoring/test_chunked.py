"""The chunked head: values, gradients and memory against the plain way."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from alignlab.scoring.chunked import chunked_scores, worthwhile
from alignlab.scoring.logits import Head, States
from alignlab.scoring.wanted import Wanted

VALUES = ("logps", "kl", "second_moment")
FORMS = {"plain": (1.0, None, False), "bias": (1.0, None, True), "scale": (0.25, None, False), "cap": (1.5, 2.0, True)}


def make_head(vocabulary: int, form: str = "plain", dtype: torch.dtype = torch.float32, size: int = 8) -> Head:
    scale, cap, bias = FORMS[form]
    linear = nn.Linear(size, vocabulary, bias=bias, dtype=dtype)
    nn.init.normal_(linear.weight)
    return Head(linear, scale, cap)


def plain_logits(hidden: Tensor, head: Head) -> Tensor:
    logits = F.linear(hidden, head.module.weight, head.module.bias) * head.scale
    logits = logits if head.cap is None else head.cap * torch.tanh(logits / head.cap)
    return logits if logits.dtype == torch.float64 else logits.float()


def plain_scores(hidden: Tensor, target: Tensor, head: Head, ref_hidden: Tensor, ref_head: Head) -> dict[str, Tensor]:
    logps = torch.log_softmax(plain_logits(hidden, head), -1)
    ref = torch.log_softmax(plain_logits(ref_hidden, ref_head), -1).detach()
    return {
        "logps": logps.gather(1, target[:, None])[:, 0],
        "kl": (ref.exp() * (ref - logps)).sum(-1),
        "second_moment": (2 * logps).logsumexp(-1),
    }


def both_ways(rows: int, vocabulary: int, form: str, dtype: torch.dtype, **chunks: int) -> list[dict[str, Tensor]]:
    """Returns values and gradients of a random weighted sum of all values: the plain way's, the chunked way's."""
    torch.manual_seed(0)
    head, ref_head = make_head(vocabulary, form, dtype), make_head(vocabulary, form, dtype)
    hidden = torch.randn(rows, 8, dtype=dtype, requires_grad=True)
    ref_hidden, target = torch.randn(rows, 8, dtype=dtype), torch.randint(vocabulary, (rows,))
    weights = torch.randn(3, rows)
    found = []
    for scores in (
        plain_scores(hidden, target, head, ref_hidden, ref_head),
        chunked_scores(hidden, head, Wanted(target, States(ref_hidden, ref_head), second_moment=True, **chunks)),
    ):
        inputs = [hidden, *head.module.parameters()]
        grads = torch.autograd.grad((weights * torch.stack([scores[v] for v in VALUES])).sum(), inputs)
        found.append(scores | dict(zip(("hidden", "weight", "bias"), grads, strict=False)))
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "vocabulary"), [(7, 11), (1, 11), (7, 3)])
def test_float32_equals_the_plain_way(rows: int, vocabulary: int, form: str) -> None:
    """Blocks of 3 x 4: they divide neither 7 nor 11; one row; a vocabulary smaller than a block."""
    plain, chunked = both_ways(rows, vocabulary, form, torch.float32, row_chunk=3, vocab_chunk=4)
    assert plain.keys() == chunked.keys()
    for name in plain:
        assert chunked[name].dtype == torch.float32
        torch.testing.assert_close(chunked[name], plain[name], rtol=1e-5, atol=3e-6)


def test_blocks_larger_than_everything_give_the_same() -> None:
    plain, chunked = both_ways(7, 11, "cap", torch.float64)
    for name in plain:
        torch.testing.assert_close(chunked[name], plain[name], rtol=0, atol=1e-13)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("form", FORMS)
def test_gradcheck(form: str, value: str) -> None:
    """Each value's derivative in hidden states, weight and bias against finite differences, in float64."""
    torch.manual_seed(0)
    head, ref_head = make_head(7, form, torch.float64, 4), make_head(7, form, torch.float64, 4)
    ref_hidden, target = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 6, 3, 3, 1])

    def scores(hidden: Tensor, *_: Tensor) -> Tensor:
        reference = States(ref_hidden, ref_head) if value == "kl" else None
        wanted = Wanted(target, reference, value == "second_moment", row_chunk=2, vocab_chunk=3)
        return chunked_scores(hidden, head, wanted)[value]

    hidden = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(scores, (hidden, *head.module.parameters()))


def test_log_probability_by_hand() -> None:
    """h = (1,), W = (0, ln 2, ln 5)^T: p = (1, 2, 5)/8, so log p_2 = ln(5/8) and log sum p^2 = ln(30/64).

    Reference uniform: KL = ln(1/3) - mean(ln p) = ln(8/3) - ln(10)/3. Its gradient in the logits is p - q; that of
    log p_2 is onehot - p; in h: (5/8 - 1/3) ln 5 + (2/8 - 1/3) ln 2, and (1 - 5/8) ln 5 - 2/8 ln 2.
    """
    ln2, ln3, ln5 = math.log(2), math.log(3), math.log(5)
    head, uniform = (Head(nn.Linear(1, 3, bias=False, dtype=torch.float64)) for _ in range(2))
    with torch.no_grad():
        head.module.weight.copy_(torch.tensor([[0.0], [ln2], [ln5]], dtype=torch.float64))
        uniform.module.weight.zero_()
    hidden = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    wanted = Wanted(torch.tensor([2]), States(hidden, uniform), second_moment=True, vocab_chunk=2)
    found = chunked_scores(hidden, head, wanted)
    assert found["logps"].item() == pytest.approx(ln5 - 3 * ln2, abs=1e-14)
    assert found["kl"].item() == pytest.approx(3 * ln2 - ln3 - (ln2 + ln5) / 3, abs=1e-14)
    assert found["second_moment"].item() == pytest.approx(math.log(30 / 64), abs=1e-14)
    by_kl, by_logp = (torch.autograd.grad(found[name], hidden, retain_graph=True)[0].item() for name in ("kl", "logps"))
    assert by_kl == pytest.approx((5 / 8 - 1 / 3) * ln5 + (2 / 8 - 1 / 3) * ln2, abs=1e-14)
    assert by_logp == pytest.approx((1 - 5 / 8) * ln5 - 2 / 8 * ln2, abs=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_of_equal_models_is_exactly_zero(dtype: torch.dtype) -> None:
    """Its gradient too. Logits up to about 100, so that neither is zero by smallness."""
    torch.manual_seed(0)
    head, hidden = make_head(50, "plain", dtype), (10 * torch.randn(9, 8)).to(dtype).requires_grad_()
    wanted = Wanted(torch.zeros(9, dtype=torch.long), States(hidden, head), row_chunk=4, vocab_chunk=7)
    kl = chunked_scores(hidden, head, wanted)["kl"]
    assert kl.tolist() == [0.0] * 9
    assert torch.autograd.grad(kl.sum(), hidden)[0].abs().max() == 0.0


def test_extreme_logits_stay_finite() -> None:
    """The best token 2000 above the rest, in the last block: log p = 0 there, -2000 elsewhere, gradients finite."""
    head = Head(nn.Linear(1, 5, bias=False))
    with torch.no_grad():
        head.module.weight.copy_(torch.tensor([[-1000.0], [-1000.0], [-1000.0], [-1000.0], [1000.0]]))
    hidden = torch.ones(2, 1, requires_grad=True)
    found = chunked_scores(hidden, head, Wanted(torch.tensor([4, 0]), second_moment=True, vocab_chunk=2))
    assert found["logps"].tolist() == [0.0, -2000.0]
    assert found["second_moment"].tolist() == [0.0, 0.0]
    assert torch.autograd.grad(found["logps"].sum(), hidden)[0].tolist() == [[0.0], [-2000.0]]


def half_precision_errors(autocast: bool) -> dict[str, tuple[float, float]]:
    """Returns name -> error of the plain and of the chunked way in bf16, relative to float64 on the same numbers."""
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    head, ref_head = make_head(3000, size=64), make_head(3000, size=64)
    numbers = [0.2 * torch.randn(96, 64), 0.2 * torch.randn(96, 64)]
    for values in [*numbers, head.module.weight.data, ref_head.module.weight.data]:
        values.copy_(values.bfloat16())  # the same numbers in every dtype
    target, weights = torch.randint(3000, (96,)), torch.randn(2, 96)

    def run(dtype: torch.dtype, autocast: bool, chunked: bool) -> dict[str, Tensor]:
        head.module.to(dtype), ref_head.module.to(dtype)
        hidden, ref_hidden = numbers[0].to(dtype).requires_grad_(), numbers[1].to(dtype)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            if chunked:
                wanted = Wanted(target, States(ref_hidden, ref_head), row_chunk=40, vocab_chunk=256)
                found = chunked_scores(hidden, head, wanted)
            else:
                found = plain_scores(hidden, target, head, ref_hidden, ref_head)
        loss = (weights[0] * found["logps"] + weights[1] * found["kl"]).sum()
        grads = torch.autograd.grad(loss, [hidden, head.module.weight])
        return {"logps": found["logps"], "kl": found["kl"], "hidden": grads[0], "weight": grads[1]}

    exact = run(torch.float64, False, False)
    plain, chunked = run(dtype, autocast, False), run(dtype, autocast, True)

    def error(found: Tensor, truth: Tensor) -> float:
        return float((found.double() - truth).norm() / truth.norm())

    return {name: (error(plain[name], exact[name]), error(chunked[name], exact[name])) for name in exact}


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_errors_are_no_worse_than_the_plain_ways(autocast: bool) -> None:
    """Under autocast none is larger. In pure bf16 a gradient is rounded thrice (dz, block, sum), the plain one twice
    (dz, sum): sqrt(3 / 2) = 1.22 of its error; adding up blocks in bf16 would make that 2.
    """
    for name, (plain, chunked) in half_precision_errors(autocast).items():
        factor = 1.3 if name in ("hidden", "weight") and not autocast else 1.001
        assert 0 < chunked <= factor * plain < 0.004, (name, plain, chunked)


def test_autocast_multiplies_in_its_dtype_and_sums_in_float32() -> None:
    """Float32 weights under autocast give exactly what bf16 copies of them give, as float32; float64 is left alone."""
    torch.manual_seed(0)
    head, hidden, target = make_head(40), torch.randn(6, 8), torch.randint(40, (6,))
    copy = Head(nn.Linear(8, 40, bias=False, dtype=torch.bfloat16))
    copy.module.weight.data.copy_(head.module.weight)
    outside = chunked_scores(hidden, head, Wanted(target))["logps"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = chunked_scores(hidden, head, Wanted(target))["logps"]
    assert inside.dtype == torch.float32
    assert torch.equal(inside, chunked_scores(hidden.bfloat16(), copy, Wanted(target))["logps"])
    assert (inside - outside).abs().max() > 1e-4
    double = make_head(40, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert chunked_scores(hidden.double(), double, Wanted(target))["logps"].dtype == torch.float64


def test_frozen_weight_gets_no_gradient_and_no_grad_makes_no_graph() -> None:
    head, hidden, target = make_head(11), torch.randn(3, 8, requires_grad=True), torch.tensor([1, 2, 3])
    head.module.requires_grad_(False)
    chunked_scores(hidden, head, Wanted(target))["logps"].sum().backward()
    assert head.module.weight.grad is None
    assert hidden.grad is not None
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            assert chunked_scores(hidden, head, Wanted(target))["logps"].grad_fn is None


def test_reference_hidden_states_may_come_from_inference_mode() -> None:
    head, hidden = make_head(11), torch.randn(3, 8, requires_grad=True)
    with torch.inference_mode():
        ref_hidden = torch.randn(3, 8) * 2
    kl = chunked_scores(hidden, head, Wanted(torch.tensor([1, 2, 3]), States(ref_hidden, head)))["kl"]
    assert torch.autograd.grad(kl.sum(), hidden)[0].abs().max() > 0


def test_no_position_and_a_target_outside_of_the_vocabulary() -> None:
    """No position: empty values, zero gradient. A target that no block holds is NaN, not a number of some other."""
    head, hidden = make_head(11), torch.randn(0, 8, requires_grad=True)
    empty = chunked_scores(hidden, head, Wanted(torch.zeros(0, dtype=torch.long), second_moment=True))
    assert [value.shape for value in empty.values()] == [(0,), (0,)]
    empty["logps"].sum().backward()
    assert head.module.weight.grad is not None
    assert head.module.weight.grad.abs().max() == 0
    found = chunked_scores(torch.randn(2, 8), head, Wanted(torch.tensor([3, 11])))["logps"]
    assert found.isnan().tolist() == [False, True]


def test_shapes_that_do_not_fit_are_refused() -> None:
    head, hidden, target = make_head(11), torch.randn(3, 8), torch.tensor([1, 2, 3])
    with pytest.raises(ValueError, match=r"\[M, D\] and target \[M\], found \(3, 8\) and \(2,\)"):
        chunked_scores(hidden, head, Wanted(target[:2]))
    with pytest.raises(ValueError, match="11 and 12 tokens"):
        chunked_scores(hidden, head, Wanted(target, States(hidden, make_head(12))))
    head.module.weight.data = torch.empty(0)
    with pytest.raises(ValueError, match="it is sharded"):
        chunked_scores(hidden, head, Wanted(target))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, as long as they live: the peak, and the largest tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.peak = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(a.untyped_storage()) for a in args if isinstance(a, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            if id(storage) not in self.live and id(storage) not in given:
                self.live[id(storage)] = storage.nbytes()
                weakref.finalize(storage, self.live.pop, id(storage), None)
                self.largest = max(self.largest, storage.nbytes())
        self.peak = max(self.peak, sum(self.live.values()))
        return out


def peak_bytes(positions: int, vocabulary: int, *, kl: bool = False, dense: bool = False, trained: bool = False) -> int:
    """Returns the peak above hidden states and weights of a forward and backward, in blocks of 64 x 2048."""
    head = Head(nn.Linear(16, vocabulary, bias=False).requires_grad_(trained))
    hidden, target = torch.randn(positions, 16, requires_grad=True), torch.zeros(positions, dtype=torch.long)
    reference = States(torch.randn(positions, 16), head) if kl else None
    with LiveBytes() as bytes_:
        if dense:
            value = F.cross_entropy(F.linear(hidden, head.module.weight), target)
        else:
            found = chunked_scores(hidden, head, Wanted(target, reference, row_chunk=64, vocab_chunk=2048))
            value = torch.stack([v.sum() for v in found.values()]).sum()
        value.backward()
    return int(bytes_.peak)


BLOCK = 64 * 2048 * 4  # 512 KiB
ROW_BYTES = 16 * 4 + 16 * 4 + 200  # two gradients of a hidden state, and less than 50 numbers


@pytest.mark.parametrize("vocabulary", [32_768, 131_072])
@pytest.mark.parametrize("kl", [False, True])
def test_memory_grows_with_the_block_not_with_positions_times_vocabulary(vocabulary: int, kl: bool) -> None:
    """At most 2.1 blocks live at once (4.1 with the KL) plus what each row keeps; at 128k as at 32k.

    The plain way holds at least two [M, V] of float32: logits and their gradient.
    """
    peaks = {rows: peak_bytes(rows, vocabulary, kl=kl) for rows in (64, 256)}
    for rows, peak in peaks.items():
        assert BLOCK <= peak <= (4.1 if kl else 2.1) * BLOCK + rows * ROW_BYTES, (rows, peak)
    assert peaks[256] - peaks[64] <= 192 * ROW_BYTES
    assert peak_bytes(64, vocabulary, kl=kl) == peak_bytes(64, 8192, kl=kl)
    assert peak_bytes(64, 32_768, dense=True) >= 2 * 64 * 32_768 * 4


def test_memory_of_a_trained_head_adds_one_weight() -> None:
    """Its gradient [V, D], and the sum of one block of the vocabulary."""
    added = peak_bytes(64, 32_768, trained=True) - peak_bytes(64, 32_768)
    assert 32_768 * 16 * 4 <= added <= (32_768 + 3 * 2048) * 16 * 4


def test_worthwhile_by_size() -> None:
    assert not worthwhile(750, 8192)
    assert worthwhile(750, 8192, kl=True)
    assert worthwhile(750, 32_768)
    assert not worthwhile(16, 131_072)
