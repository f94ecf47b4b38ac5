"""Training: the loop over epochs and batches, what it shows, and the history it leaves."""
