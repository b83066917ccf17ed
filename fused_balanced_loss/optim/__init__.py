"""Optimizers that change a linear classifier in place, in the backward, chunk by chunk."""
