"""How a network computes: sharded passes, capture and replay, evaluation, and what a layer costs."""
