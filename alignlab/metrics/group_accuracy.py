"""Preference accuracy of each group, and of the group that is worst off."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.group_accuracy.__doc__


class GroupAccuracy(evaluate.Metric):  # type: ignore[misc]
    """``formulas.group_accuracy`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="chosen, rejected: rewards of each pair; groups: the group of each pair",
            features=datasets.Features(
                {
                    "chosen": datasets.Value("float64"),
                    "rejected": datasets.Value("float64"),
                    "groups": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, chosen: list[float], rejected: list[float], groups: list[str]) -> formulas.Figures:
        return formulas.group_accuracy(chosen, rejected, groups)
