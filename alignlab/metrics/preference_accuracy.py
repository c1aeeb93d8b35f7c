"""How often the chosen completion has the higher reward."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.preference_accuracy.__doc__


class PreferenceAccuracy(evaluate.Metric):  # type: ignore[misc]
    """``formulas.preference_accuracy`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="chosen, rejected: rewards of each pair",
            features=datasets.Features(
                {
                    "chosen": datasets.Value("float64"),
                    "rejected": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, chosen: list[float], rejected: list[float]) -> formulas.Figures:
        return formulas.preference_accuracy(chosen, rejected)
