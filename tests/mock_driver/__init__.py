"""The real CuPy on a pretended GPU: see run.py."""
