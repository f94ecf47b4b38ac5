"""Pictures drawn with matplotlib: each function returns a Figure, and saves it where `path` is given."""

from gpucnn.plots.augmented import augmented
from gpucnn.plots.curves import accuracy, error, history, looks, runs
from gpucnn.plots.kernels import animate_filters, filters, filters_by_epoch
from gpucnn.plots.maps import feature_maps
from gpucnn.plots.prediction import prediction
from gpucnn.plots.testing import confusion, confusion_matrix, mistakes
from gpucnn.plots.values import histograms, parameter_values

__all__ = [
    "accuracy",
    "animate_filters",
    "augmented",
    "confusion",
    "confusion_matrix",
    "error",
    "feature_maps",
    "filters",
    "filters_by_epoch",
    "histograms",
    "history",
    "looks",
    "mistakes",
    "parameter_values",
    "prediction",
    "runs",
]
