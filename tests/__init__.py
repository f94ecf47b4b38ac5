"""The tests: meaning by plain loops, gradients by differences, parity between backends, and everything around them."""
