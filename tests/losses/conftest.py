"""Golden cases: 6 ragged pairs with full distributions, and what every method gives on them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from alignlab.losses import Facts, Labelled, Pairs, Scored

DATA = json.loads((Path(__file__).parent / "golden.json").read_text())
FINITE_DIFFERENCES = 1e-7  # precision of the golden gradients
GROUPS = {"a": 60, "b": 30, "c": 10}


def padded(rows, dtype, fill=0.0):
    """Returns ragged rows of numbers as ``[N, T]``."""
    tensors = [torch.tensor(row, dtype=dtype) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)


class Golden:
    """Builds the golden batches in one dtype and compares losses with the golden numbers."""

    def __init__(self, dtype=torch.float64):
        self.dtype = dtype

    @staticmethod
    def case(name, setting):
        """Returns hyper-parameters, outputs and gradients of one case."""
        (case,) = [case for case in DATA["cases"] if (case["name"], case["setting"]) == (name, setting)]
        return SimpleNamespace(**({"seq_grad": None, "logit_grad": None} | case))

    def scored(self, key, mask="mask", flip=False, logits=None):
        """Returns one side of the pairs; the policy's scores are those of ``logits`` where given."""
        rows = DATA["inputs"][key]
        policy, reference = [], []
        for index, row in enumerate(rows):
            if "pi" in row:
                full = torch.tensor(row["pi"], dtype=self.dtype) if logits is None else logits[index].log_softmax(-1)
                tokens = torch.tensor(row["tokens"])[:, None]
                policy.append(full.gather(1, tokens)[:, 0])
                reference.append(torch.tensor(row["ref"], dtype=self.dtype).gather(1, tokens)[:, 0])
            else:
                policy.append(torch.tensor(row["pi_tok"], dtype=self.dtype))
                reference.append(torch.tensor(row["ref_tok"], dtype=self.dtype))
        if flip:
            policy, reference = reference, policy
        pad = torch.nn.utils.rnn.pad_sequence
        logps = pad(policy, batch_first=True, padding_value=float("nan"))
        if logits is None:
            logps.requires_grad_()
        return Scored(
            logps=logps,
            mask=padded([row[mask] for row in rows], torch.int64).bool(),
            ref_logps=pad(reference, batch_first=True, padding_value=float("nan")),
        )

    def logits(self, key):
        """Returns the policy's log-distributions as logits that take a gradient, one tensor per row."""
        return [torch.tensor(row["pi"], dtype=self.dtype).requires_grad_() for row in DATA["inputs"][key]]

    def with_distributions(self, scored, key, logits):
        """Adds KL(reference || policy) and the policy's second moment at every position."""
        kl, moment = [], []
        for row, full in zip(DATA["inputs"][key], logits, strict=True):
            policy, reference = full.log_softmax(-1), torch.tensor(row["ref"], dtype=self.dtype)
            kl.append((reference.exp() * (reference - policy)).sum(-1))
            moment.append((2 * policy).logsumexp(-1).detach())
        pad = torch.nn.utils.rnn.pad_sequence
        scored.kl, scored.second_moment = pad(kl, batch_first=True), pad(moment, batch_first=True)
        return scored

    def pairs(self, mask="mask", **columns):
        """Returns the 6 pairs, with groups and any other columns as lists."""
        columns = {name: torch.tensor(value, dtype=self.dtype) for name, value in columns.items()}
        group = torch.tensor(DATA["inputs"]["groups"])
        return Pairs(self.scored("chosen", mask), self.scored("rejected", mask), group=group, **columns)

    def distribution_pairs(self):
        """Returns pairs with everything that needs full distributions, and the logits they hang on."""
        logits = {key: self.logits(key) for key in ("chosen", "rejected")}
        sides = {k: self.with_distributions(self.scored(k, logits=v), k, v) for k, v in logits.items()}
        return Pairs(**sides), logits

    def labelled(self, mask="mask", flip_kl=False):
        """Returns the 6 chosen completions as desirable, then the 6 rejected ones, with the mismatched completions."""
        completions = joined(self.scored("chosen", mask), self.scored("rejected", mask))
        completions.logps = completions.logps.detach().requires_grad_()
        sides = [self.scored(key, mask, flip_kl) for key in ("kl_chosen", "kl_rejected")]
        desirable = torch.arange(12) < 6
        return Labelled(completions, desirable, joined(*sides))

    def prompts(self, scored):
        """Adds the prompts' log-probabilities."""
        rows = DATA["inputs"]["prompt_pi_tok"]
        scored.prompt_logps = padded(rows, self.dtype, float("nan"))
        scored.prompt_mask = padded([[1] * len(row) for row in rows], torch.int64).bool()
        return scored

    def mixed(self):
        """Returns log-probabilities under mixed inputs, NaN where nothing counts, and their mask."""
        rows = DATA["inputs"]["mixed_pi_tok"]
        mask = padded([[1] * len(row) for row in rows], torch.int64).bool()
        return padded(rows, self.dtype, float("nan")), mask

    def close(self, found, expected, absolute=1e-9):
        """Asserts that ``found`` is the golden number: 1e-9 in float64, 2e-5 relative in float32.

        Where the parts of a float32 tensor cancel, what is left is measured against 1e-6 of the largest number.
        """
        expected = torch.as_tensor(expected, dtype=self.dtype)
        rtol, atol = (0.0, absolute) if self.dtype == torch.float64 else (2e-5, 1e-6 * float(expected.abs().max()))
        torch.testing.assert_close(torch.as_tensor(found).to(self.dtype), expected, rtol=rtol, atol=atol)

    def check(self, name, setting, loss, batch=None, per_example=True):
        """Asserts loss, per-example losses and sequence gradients of one case; returns the output."""
        case = self.case(name, setting)
        batch = self.pairs() if batch is None else batch
        out = loss(batch)
        self.close(out.loss.mean(), case.outputs["loss"])
        if per_example:
            self.close(out.loss, case.outputs["per_example"])
        if case.seq_grad:
            self.close_gradients(out.loss.mean(), batch, case.seq_grad)
        return out

    def close_gradients(self, objective, batch, golden):
        """Asserts that every counted token of a sequence has the sequence's golden gradient, and no other any."""
        expected = torch.tensor([*golden["d_loss_d_logp_chosen"], *golden["d_loss_d_logp_rejected"]], dtype=self.dtype)
        sides = (batch.chosen, batch.rejected) if isinstance(batch, Pairs) else (batch.completions,)
        found = torch.autograd.grad(objective, [side.logps for side in sides])
        for gradient, side, rows in zip(found, sides, expected.split(len(batch)), strict=True):
            wanted = torch.where(side.mask, rows[:, None], torch.zeros((), dtype=self.dtype))
            self.close(gradient, wanted, FINITE_DIFFERENCES)

    def close_logit_gradients(self, objective, logits, golden):
        """Asserts the gradient on the logits of the first pair."""
        for key, rows in logits.items():
            (found,) = torch.autograd.grad(objective, [rows[0]], retain_graph=True)
            self.close(found, golden[f"d_loss_d_logits_{key}_0"], FINITE_DIFFERENCES)


def joined(first, second):
    """Returns the completions of both, the first's rows first."""
    width = max(first.logps.shape[1], second.logps.shape[1])

    def cat(name):
        sides = [getattr(side, name) for side in (first, second)]
        return torch.cat([torch.nn.functional.pad(side, (0, width - side.shape[1])) for side in sides])

    return Scored(cat("logps"), cat("mask"), cat("ref_logps"))


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def golden(request):
    return Golden(request.param)


@pytest.fixture
def exact():
    """The golden batches in float64 only, for identities."""
    return Golden()


@pytest.fixture
def facts():
    return Facts(rows=100, groups=GROUPS)


@pytest.fixture
def at_reference():
    """Returns a function that makes policy and reference of a batch equal."""

    def equal(batch):
        sides = (batch.chosen, batch.rejected) if isinstance(batch, Pairs) else (batch.completions, batch.mismatched)
        for side in sides:
            side.ref_logps = side.logps.detach().clone()
        return batch

    return equal
