"""Tools that prove a layer or a model right: `check_layer`, `parity`, and a device that refuses host arrays."""
