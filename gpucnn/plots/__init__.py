"""Pictures drawn with matplotlib: each function returns a Figure, and saves it where `path` is given."""

from gpucnn.plots.augmented import augmented
from gpucnn.plots.confusion import confusion, confusion_matrix, mistakes
from gpucnn.plots.curves import accuracy, history, loss, observations, runs
from gpucnn.plots.feature_maps import feature_maps
from gpucnn.plots.filters import animate_filters, filters, filters_by_epoch
from gpucnn.plots.histograms import histograms, parameter_values
from gpucnn.plots.prediction import prediction

__all__ = [
    "accuracy",
    "animate_filters",
    "augmented",
    "confusion",
    "confusion_matrix",
    "feature_maps",
    "filters",
    "filters_by_epoch",
    "histograms",
    "history",
    "loss",
    "mistakes",
    "observations",
    "parameter_values",
    "prediction",
    "runs",
]
