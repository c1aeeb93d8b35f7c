"""How well rewards order lists of scored answers: pairs, the best, and NDCG."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.list_ranking.__doc__


class ListRanking(evaluate.Metric):  # type: ignore[misc]
    """``formulas.list_ranking`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="rewards, scores: of each answer of each list",
            features=datasets.Features(
                {
                    "rewards": datasets.Sequence(datasets.Value("float64")),
                    "scores": datasets.Sequence(datasets.Value("float64")),
                }
            ),
        )

    def _compute(self, rewards: list[list[float]], scores: list[list[float]]) -> formulas.Figures:
        return formulas.list_ranking(rewards, scores)
