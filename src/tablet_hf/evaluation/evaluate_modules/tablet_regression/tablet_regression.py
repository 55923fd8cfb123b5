"""An `evaluate` module of regression metrics; `tablet_hf.evaluation.metrics.load_metric` loads it by its path."""

import datasets
import evaluate

from tablet_hf.evaluation.metrics import regression_metrics

_INPUTS = """
Args:
    predictions: predicted values, in the unit of the target.
    references: true values.
Returns:
    a number for each metric, NaN where it is not defined.
"""


class TabletRegression(evaluate.Metric):
    def _info(self):
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description="Pearson correlation, R2, mean absolute error and mean squared error.",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references):
        return regression_metrics(references, predictions)
