"""What frozen features are worth, a file a protocol; nothing is trained."""

from pcl_clora.engine.probes.features import FeatureProbe, extract_features
from pcl_clora.engine.probes.knn import knn_accuracy
from pcl_clora.engine.probes.svm import require_svm, svm_accuracy

__all__ = ["FeatureProbe", "extract_features", "knn_accuracy", "require_svm", "svm_accuracy"]
