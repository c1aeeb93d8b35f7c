"""Noise contrastive alignment."""

from __future__ import annotations

from typing import ClassVar, Literal

from ._base import Batch, Listed, Loss, LossOutput, Needs, Totals, lists_of, pairs_of
from ._checks import check_non_negative, check_positive
from ._lists import mean_where, soft_labels
from ._output import pair_output
from ._scored import log_sigmoid, where_mask


class NCA(Loss):
    """Noise contrastive alignment: raises the chosen reward itself, and not only above the rejected one.

    Formula: pairs ``-log s(beta a) - 0.5 log s(-beta a) - 0.5 log s(-beta b)``, s the sigmoid; lists
    ``-sum_i [q_i log s(r_i) + (1 / K) log s(-r_i)]``, r = beta (L - R), q = softmax(scores / alpha).

    Two completions at alpha = 0 are a pair. Its sibling InfoNCA is DPO on pairs, and ``infonca`` on lists, where the
    word on alpha and on ties stands.

    Args:
        beta: > 0.
        data: "pairs" or "lists".
        alpha: of lists, the temperature of the scores, >= 0; 1e-4 where it is not given.

    Raises:
        ValueError: an option is out of its range, or pairs are given an alpha, which they have no scores for.

    Source: Chen et al. 2024, arXiv:2402.05369, table 1; of lists as in the released code.
    Elsewhere: TRL ``nca_pair``; thu-ml/Noise-Contrastive-Alignment ``loss_type: NCA`` for lists of four.
    """

    aliases: ClassVar = {"nca_pair": {}}

    def __init__(
        self, beta: float = 0.01, data: Literal["pairs", "lists"] = "pairs", alpha: float | None = None
    ) -> None:
        super().__init__()
        self.beta = check_positive("beta", beta)
        if data == "pairs" and alpha is not None:
            raise ValueError(f"alpha is the temperature of a list's scores: write data: lists with it, found {alpha}")
        self.alpha = check_non_negative("alpha", 1e-4 if alpha is None else alpha)
        self.needs = Needs(data=data, ref_logps=True)

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        if self.needs.data == "lists":
            return self._of_lists(lists_of(batch))
        pairs = pairs_of(batch)
        chosen, rejected = self.beta * pairs.chosen.log_ratios, self.beta * pairs.rejected.log_ratios
        loss = -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)
        return pair_output(pairs, loss, self.beta)

    def _of_lists(self, lists: Listed) -> LossOutput:
        r = self.beta * lists.completions.log_ratios
        gain = (soft_labels(lists, self.alpha, r) * where_mask(log_sigmoid(r), lists.present)).sum(-1)
        return LossOutput(-gain - mean_where(log_sigmoid(-r), lists.present), rewards=r.detach())
