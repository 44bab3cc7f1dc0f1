"""The state that a run starts from: fresh, or read from the newest checkpoint if model and data have not changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging

from irm_jax import checkpoint
from irm_jax.training import optimizer as optimizers
from irm_jax.training import state as states
from irm_jax.training.state import TrainState

if TYPE_CHECKING:
    from irm_jax.run import Run

COMPARED = (
    "model",
    "loss",
    "objectives",
    "momentum",
    "memory_bank",
    "text_to_image",
    "optimizer",
    "train",
    "evaluation",
)
"""Tables of the configuration whose changes are logged when a run is resumed."""


def first_state(run: Run, checkpoints: checkpoint.Checkpointer) -> tuple[TrainState, bool]:
    """Returns the state to train from, and whether it comes from a checkpoint.

    Raises CheckpointError for a checkpoint that does not fit, or if there is one and `config.resume` is False.
    """
    latest = checkpoints.latest_step()
    if latest is None:
        return run.fresh_state(), False
    if not run.config.resume:
        raise checkpoint.CheckpointError(
            f"{checkpoints.directory.parent} holds a run at step {latest} and config.resume is False; choose another "
            "--workdir, or delete the folder to start again"
        )
    state = restore(run, checkpoints, latest)
    logging.info("resumed from step %d of %s", latest, checkpoints.directory)
    return state, True


def restore(run: Run, checkpoints: checkpoint.Checkpointer, step: int) -> TrainState:
    """Returns the saved state if neither the model nor the data plan changed since.

    Other settings may change from one start to the next, and the log says which did; not those that the optimizer's
    state does not bear. So may the data plan, if `config.data.accept_changes` says so. A bank of other lanes (another
    batch or size) is laid out anew.

    Raises CheckpointError naming every difference.
    """
    _, saved = checkpoint.read_metadata(checkpoints.directory, step)
    checkpoint.check_record(saved, f"step {step} in {checkpoints.directory}")
    arrays = checkpoint.array_shapes(checkpoints.directory, step)
    run.check_checkpoint(checkpoint.saved_model(saved, arrays))
    _log_changes(saved["config"], run.config.to_dict())
    plan, fingerprint = saved["fingerprint"], run.data.fingerprint()
    if run.config.data.accept_changes:
        for line in checkpoint.differences(plan, fingerprint):
            logging.warning("resumed with other data: %s", line)
        _require_same_numbers(plan, fingerprint)
        plan = fingerprint
    abstract = run.abstract_state()
    frozen = saved["config"].get("optimizer", {}).get("frozen", "")
    _require_same_frozen(optimizers.thawed(abstract.params, frozen, run.config.optimizer.frozen), frozen)
    target = states.with_saved_moments(states.with_saved_banks(abstract, arrays), arrays)
    try:
        restored, _ = checkpoints.restore(target, step)
    except checkpoint.CheckpointError as error:
        try:  # other data can change the shape of an array too: then both are reported
            checkpoint.check_fingerprint(plan, fingerprint)
        except checkpoint.CheckpointError as besides:
            raise checkpoint.CheckpointError(f"{error}\nBesides, {besides}") from error
        raise
    checkpoint.check_fingerprint(plan, fingerprint)
    if target is not abstract:
        restored, fresh = states.with_fresh_moments(restored, abstract)
        if fresh:
            logging.warning("%d moments of the optimizer are dropped: config.optimizer.frozen is another one", fresh)
        restored, kept = states.with_relaid_banks(restored, abstract)
        for name, count in kept.items():
            logging.warning("the %s was laid anew for this batch and size: %d keys kept", name.replace("_", " "), count)
    _require_same_averages(restored, run.config.optimizer.beta1)
    return restored


def _log_changes(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Warns of every setting that differs; keys that are newer than the checkpoint are left out."""
    for table in COMPARED:
        for line in checkpoint.differences(saved.get(table, {}), current[table]):
            if ": checkpoint absent, " not in line:
                logging.warning("resumed with another setting: config.%s.%s", table, line)


def _require_same_frozen(thawed: Sequence[str], before: str) -> None:
    """Raises CheckpointError if parameters are to learn that were frozen: the optimizer has no moments of them.

    Beside its count of all steps, moments of 0 would make the first steps several times too long.
    """
    if thawed:
        raise checkpoint.CheckpointError(
            f"config.optimizer.frozen lets {len(thawed)} parameters learn ({thawed[0]}, ...) that were frozen, and of "
            f"which the checkpoint's optimizer has no moments: set it to {before!r} again. What is to learn later has "
            "config.optimizer.rate_multipliers='(\"PATTERN=0\",)' from the first step, which gathers moments"
        )


def _require_same_averages(state: TrainState, beta1: float) -> None:
    """Raises CheckpointError if the averages of schedule_free were made with another beta1 than the next steps'."""
    for saved in optimizers.free_states(state.opt_state):
        before = np.asarray(saved.b1)
        if before.dtype.type(beta1) != before:
            raise checkpoint.CheckpointError(
                f"config.optimizer.beta1 = {beta1:g}, but the averages of schedule_free in the checkpoint are made "
                f"with {before:g}: set it to {before:g} again, or train in a new workdir"
            )


def _require_same_numbers(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises CheckpointError if words or people are numbered otherwise than in the checkpoint: no option mends that."""
    for key, rows in (
        ("vocabulary", "the word table's rows would stand for other words"),
        ("people", "identity heads, memory bank and caption queue would take people for others"),
    ):
        if saved.get(key) != current[key]:
            raise checkpoint.CheckpointError(
                f"the {key} of the training data changed since the checkpoint: {rows}. Train in a new workdir"
            )
