"""The real CuPy on a mock driver: see run.py."""
