"""Training: the loop over epochs and batches, its progress display, checkpoints and history."""
