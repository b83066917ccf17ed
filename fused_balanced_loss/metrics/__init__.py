"""Metrics of multi-label predictions, from streams of batches in memory that does not grow with their number."""

from .average_precision import LabelAveragePrecision, SampleAveragePrecision
from .calibration import CalibrationError, ReliabilityBins
from .label_report import LabelRow, label_report, write_label_report
from .predicted_labels import predict_labels
from .ranking import RankingMetrics, label_propensities
from .thresholded_f1 import TOTAL, BestThreshold, Scores, ThresholdedF1
from .thresholds import PAPER_THRESHOLDS, Activation, threshold_grid

__all__ = [
    "PAPER_THRESHOLDS",
    "TOTAL",
    "Activation",
    "BestThreshold",
    "CalibrationError",
    "LabelAveragePrecision",
    "LabelRow",
    "RankingMetrics",
    "ReliabilityBins",
    "SampleAveragePrecision",
    "Scores",
    "ThresholdedF1",
    "label_propensities",
    "label_report",
    "predict_labels",
    "threshold_grid",
    "write_label_report",
]
