"""The axes on which linear models learn from rows with more features than there are rows, or from very many rows."""

from typing import Any

__all__ = ["MOST_AXES", "principal_axes"]

MOST_AXES = 2000
"""Of more rows than this the leading principal components are taken: all of them would be a matrix of rows by rows."""


def principal_axes(num_rows: int, num_features: int, seed: int = 0) -> Any:
    """A PCA (scikit-learn's, not fitted) that turns rows into the space that they span.

    A penalty on the squares of weights leaves them within that space, so up to `MOST_AXES` rows no prediction changes
    by it (Hastie & Tibshirani 2004, doi:10.1093/biostatistics/kxh010). Of more rows, where there are more features
    too, the leading axes are found by a randomised decomposition, and what lies across them is not learnt from.

    Args:
        num_rows, num_features: that it will be fitted on.
        seed: of the randomised decomposition.
    """
    from sklearn.decomposition import PCA

    if min(num_rows, num_features) <= MOST_AXES:
        return PCA(svd_solver="full" if num_rows <= MOST_AXES else "covariance_eigh")
    return PCA(MOST_AXES, svd_solver="randomized", random_state=seed)
