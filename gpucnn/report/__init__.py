"""The report of a run: one HTML page that needs nothing but itself."""

from gpucnn.report.page import render, write

__all__ = ["render", "write"]
