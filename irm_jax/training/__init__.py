"""Training: the state, the optimizer, one step, and the loop around it."""
