"""Safetensors files: models, and trees of arrays and plain data."""
