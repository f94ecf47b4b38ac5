"""gpucnn: convolutional networks with hand-written backward passes, in NumPy or in CuPy."""
