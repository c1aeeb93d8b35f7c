"""The margin, and how far sigmoid(margin) can be believed."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.margin_calibration.__doc__


class MarginCalibration(evaluate.Metric):  # type: ignore[misc]
    """``formulas.margin_calibration`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="margins: chosen minus rejected reward of each pair; bins: of the reliability diagram",
            features=datasets.Features(
                {
                    "margins": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, margins: list[float], bins: int = 10) -> formulas.Figures:
        return formulas.margin_calibration(margins, bins)
