"""An `evaluate` module of the metrics of classes; `tablet_hf.evaluation.metrics.load_metric` loads it by its path."""

import datasets
import evaluate

from tablet_hf.evaluation.metrics import classification_metrics

_DESCRIPTION = (
    "Accuracy, balanced accuracy, AUROC and F1, of two classes also sensitivity and specificity; of more than two "
    "AUROC (one against the rest) and F1 are averaged over the classes. Computed by scikit-learn."
)

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
    predictions: of two classes the probability of the positive one, or a list of the probabilities of all classes.
    references: the number of the true class, from 0 on.
Returns:
    a number for each metric, NaN where it is not defined.
"""


class TabletClassification(evaluate.Metric):
    def _info(self):
        reference = datasets.Value("int64")
        one = datasets.Features({"predictions": datasets.Value("float64"), "references": reference})
        several = datasets.Features({"predictions": datasets.List(datasets.Value("float64")), "references": reference})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation=_CITATION, inputs_description=_INPUTS, features=[one, several]
        )

    def _compute(self, predictions, references):
        return classification_metrics(references, predictions)
