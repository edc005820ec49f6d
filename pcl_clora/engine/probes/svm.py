"""Frozen features classified by a linear support vector machine."""

from __future__ import annotations

from importlib.util import find_spec

from torch import Tensor

from pcl_clora.errors import MissingPackageError

SVM_COST = 0.01


def svm_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, cost: float = SVM_COST
) -> float:
    """Classify test features by a linear support vector machine, one class against the rest.

    Features are scaled to mean 0 and deviation 1 by those of the training clouds.

    Args:
        train: features (n, C) and labels (n,).
        test: features (m, C) and labels (m,).
        cost: weight C of the margin violations.

    Returns:
        Overall accuracy in [0, 1].

    Raises:
        ImportError: if scikit-learn is not installed; the message says how to get it.

    Source: the linear-SVM protocol of self-supervised point cloud learning (for example CrossPoint, CVPR
        2022); solver and scaling are our choice.
    """
    require_svm()
    from sklearn.svm import LinearSVC

    mean, deviation = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    machine = LinearSVC(C=cost, dual="auto", random_state=0)
    machine.fit(((train[0] - mean) / deviation).numpy(), train[1].numpy())
    return float(machine.score(((test[0] - mean) / deviation).numpy(), test[1].numpy()))


def require_svm() -> None:
    """Raise an ImportError that says what to do, unless scikit-learn is installed."""
    if find_spec("sklearn") is None:
        raise MissingPackageError(
            "The linear-SVM probe needs scikit-learn: pip install scikit-learn. The k-NN probe does not: set "
            "probe.svm=false, or --no-svm for `pcl-clora probe`."
        )
