"""Noise contrastive alignment of lists, between the completions of one prompt."""

from __future__ import annotations

import torch

from ._base import Batch, Loss, LossOutput, Needs, Totals, lists_of
from ._checks import check_non_negative, check_positive
from ._lists import soft_labels
from ._scored import where_mask


class InfoNCA(Loss):
    """InfoNCA: draws the policy's shares of a list's completions to the shares that their scores ask for.

    Formula: ``-sum_i q_i log softmax(s)_i``, s = beta (L - R), q = softmax(scores / alpha), over a list.

    At alpha = 0 the best completion has all of q, tied ones equal parts, and the loss is that of the best against the
    whole list; with two completions it is DPO. The released config takes alpha = 1e-4, which on scores from 1 to 10 is
    the same. Scores equal by chance share q here; the released code adds 0.01 to the first completion's.

    Args:
        beta: strength of the pull to the reference, > 0.
        alpha: temperature of the scores, in their units, >= 0: the larger, the less a better score counts.

    Raises:
        ValueError: an option is out of its range.

    Source: Chen et al. 2024, arXiv:2402.05369, table 1 and the released code.
    Elsewhere: neither in TRL nor in LLaMA-Factory; thu-ml/Noise-Contrastive-Alignment ``loss_type: InfoNCA``
        (``temperature_alpha``).
    """

    needs = Needs(data="lists", ref_logps=True)

    def __init__(self, beta: float = 0.01, alpha: float = 1e-4) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        self.alpha = check_non_negative("alpha", alpha)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        lists = lists_of(batch)
        s = self.beta * lists.completions.log_ratios
        shares = torch.log_softmax(s.masked_fill(~lists.present, -torch.inf), -1)
        loss = -(soft_labels(lists, self.alpha, s) * where_mask(shares, lists.present)).sum(-1)
        return LossOutput(loss, rewards=s.detach())
