"""The GPU backend: CuPy arrays in the memory of one NVIDIA GPU.

Importing this module imports CuPy; nothing else in the package does.
"""

from typing import Any

import cupy
import numpy as np

from gpucnn.backends.base import Array, Backend


class CupyBackend(Backend):
    """CuPy on one GPU; every kernel is the portable text of the base class so far.

    Raises:
        Exception: whatever CuPy raises where there is no usable GPU; `get_backend` turns it into a remedy.
    """

    xp = cupy

    def __init__(self, device: int = 0) -> None:
        self.name = "cupy" if device == 0 else f"cupy:{device}"
        self.device = device
        cupy.cuda.Device(device).use()
        self._probe()

    def _probe(self) -> None:
        """Run a kernel and a product: CuPy imports without a driver, and cuBLAS may load where NVRTC is missing."""
        host = np.arange(12, dtype=np.float32).reshape(3, 4)
        array = self.from_host(host)
        product = self.to_host((array + 1.0) @ array.T)
        if not np.allclose(product, (host + 1.0) @ host.T, rtol=1e-4):
            raise RuntimeError(f"the GPU returned a wrong product: {product.tolist()}")

    def from_host(self, array: Any) -> Array:
        """Copy a host array to the GPU; an array that is there already is returned as it is."""
        return cupy.asarray(array)

    def to_host(self, array: Array) -> "np.ndarray[Any, Any]":
        """Copy an array of the GPU to the host, waiting for it."""
        return cupy.asnumpy(array)

    def synchronize(self) -> None:
        """Wait until the GPU has done all work that was started."""
        cupy.cuda.get_current_stream().synchronize()

    def describe(self) -> str:
        """Return one line that names the GPU."""
        properties = cupy.cuda.runtime.getDeviceProperties(self.device)
        return f"{self.name} (CuPy {cupy.__version__} on {properties['name'].decode()})"

    def erf(self, x: Array) -> Array:
        """Return the error function of every element, in the dtype of `x`."""
        from cupyx.scipy.special import erf

        return erf(x)
