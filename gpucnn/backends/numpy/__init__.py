"""The CPU backend: NumPy arrays in the host's memory."""

from gpucnn.backends.base import Backend


class NumpyBackend(Backend):
    """NumPy on the CPU; every kernel is the portable text of the base class so far."""

    name = "numpy"
