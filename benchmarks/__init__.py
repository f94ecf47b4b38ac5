"""Timing beside named peers; see README.md."""
