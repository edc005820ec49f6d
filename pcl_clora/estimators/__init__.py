"""Estimators with the interface of scikit-learn, for lists of clouds (N, 3)."""

from pcl_clora.estimators.classifier import PointClassifier
from pcl_clora.estimators.segmenter import PointSegmenter, mean_iou, mean_iou_scorer

__all__ = ["PointClassifier", "PointSegmenter", "mean_iou", "mean_iou_scorer"]
