"""Checkpoints: saving, reading, and comparing with what is run now. The only folder that imports orbax."""

from irm_jax.checkpoint.comparing import check_fingerprint, check_model, check_record, differences, saved_model
from irm_jax.checkpoint.errors import CheckpointError, StorageLost
from irm_jax.checkpoint.reading import (
    StepChoice,
    array_shapes,
    load_arrays,
    read_metadata,
    restore_for_evaluation,
    saved_steps,
)
from irm_jax.checkpoint.saving import Checkpointer, save_arrays

__all__ = [
    "CheckpointError",
    "Checkpointer",
    "StepChoice",
    "StorageLost",
    "array_shapes",
    "check_fingerprint",
    "check_model",
    "check_record",
    "differences",
    "load_arrays",
    "read_metadata",
    "restore_for_evaluation",
    "save_arrays",
    "saved_model",
    "saved_steps",
]
