"""Training runs on disk: their folders, statistics over many, published results reproduced, benchmarks."""
