"""The objectives of a training step: which losses it takes, of which rows."""
