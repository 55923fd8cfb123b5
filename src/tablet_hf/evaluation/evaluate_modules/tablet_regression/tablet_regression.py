"""An `evaluate` module of the metrics of a number; `tablet_hf.evaluation.metrics.load_metric` loads it by its path."""

import datasets
import evaluate

from tablet_hf.evaluation.metrics import regression_metrics

_DESCRIPTION = "Mean squared and mean absolute error, Pearson correlation and R2. Computed by scikit-learn and scipy."

_CITATION = """\
@article{scikit-learn,
  title={Scikit-learn: Machine Learning in {P}ython},
  author={Pedregosa, F. and others},
  journal={Journal of Machine Learning Research},
  volume={12},
  pages={2825--2830},
  year={2011}
}
"""

_INPUTS = """
Args:
    predictions: what was predicted, in the unit of the target.
    references: the true numbers.
Returns:
    a number for each metric, NaN where it is not defined.
"""


class TabletRegression(evaluate.Metric):
    def _info(self):
        value = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references):
        return regression_metrics(references, predictions)
