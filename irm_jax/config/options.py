"""Values and frozen option classes that are made from the configuration at its edge. No jax here."""

from __future__ import annotations

COMPILED_STEPS = ("train", "embed", "ranking")
"""What `--mode compile` can compile."""
