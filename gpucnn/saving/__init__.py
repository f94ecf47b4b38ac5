"""Files of tensors: a model in one file, and the tree of arrays and plain values that it is made of."""
