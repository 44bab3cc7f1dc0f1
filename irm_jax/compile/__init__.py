"""Ahead of time: the run's real programs compiled for devices that are not here, and what they would cost there."""

STEPS = ("train", "embed", "ranking")
"""What `--mode compile` can compile."""
