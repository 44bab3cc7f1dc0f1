"""The training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from etils import epath

from data_pipelines.batches.prefetch import ReaderLost
from irm_jax.checkpoint import Checkpointer
from irm_jax.logs.workdir import locked
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import processes
from irm_jax.training import estimates, resume
from irm_jax.training.hooks import Hook, Metrics, Training, hooks_of
from irm_jax.training.state import STEPS, TrainState, random_key
from irm_jax.training.stop_signal import Interrupted, StopSignal

if TYPE_CHECKING:
    from irm_jax.run import Run

CHECKPOINTS = "checkpoints"


def fit(run: Run, workdir: epath.Path, hooks: Sequence[Hook] | None = None) -> TrainState:
    """Trains to `config.train.steps`, from the newest checkpoint if there is one, and returns the last state.

    Args:
        run: the parts of the run.
        workdir: where everything is written.
        hooks: what happens beside the steps; None stands for `hooks_of(run.config)`.

    Raises:
        ConfigError: for data that must not be trained on, and for a disk that does not hold the checkpoints.
        LockedError: while another command works in the folder.
        CheckpointError: for a checkpoint of another run, and where no checkpoint can be written.
        NonFiniteLoss: at the first metric that is not finite.
        Stopped: after SIGTERM, Ctrl-C or the loss of a reader process, with the state saved.
    """
    run.check_training()
    c = run.config.checkpoint
    with (
        locked(workdir),
        Checkpointer(
            workdir / CHECKPOINTS, keep=c.keep, best_metric=c.best_metric, async_=c.asynchronous
        ) as checkpoints,
        StopSignal() as signal,
    ):
        training = Training(run, workdir, checkpoints, signal, hooks_of(run.config) if hooks is None else hooks)
        state, training.resumed = resume.first_state(run, checkpoints)
        training.start = int(state.step)
        with jax.set_mesh(run.mesh), training.resources:
            estimates.announce(training, state)
            stream, take_step = _Batches(training), _Step(run)
            training.hooks.on_start(training, state)
            try:
                for step in range(training.start + 1, training.steps + 1):
                    batch = next(stream)
                    state, metrics = take_step(state, batch)
                    training.hooks.on_step(step, state, metrics)
            except Interrupted:
                training.stop(state)
        training.hooks.on_end(state)
    return state


class _Batches:
    """The batches of the steps to come, on the devices; waiting for them is timed."""

    def __init__(self, training: Training) -> None:
        self._training, self._done = training, training.start
        run = training.run
        self._layout = mesh_lib.batch_sharding(run.mesh, leading=int(run.config.optimizer.accumulate > 1))
        self._stream = self._open()

    def _open(self, **options: Any) -> Any:
        training = self._training
        left = max(training.steps - self._done, 0)
        return training.resources.enter_context(training.run.stream(self._done, left, **options))

    def __next__(self) -> dict[str, dict[str, jax.Array]]:
        """Raises Interrupted if this process is alone and a reader process is lost, or a signal comes meanwhile.

        Data may never come, as from a file system that hangs. Several processes decide together, after a step.
        """
        alone, signal = processes.alone(), self._training.signal
        try:
            with signal.at_once("the wait for data") if alone else contextlib.nullcontext():
                _, batch = self._training.timer.wait_for(self._stream.__next__)
        except ReaderLost as error:  # what was read is right: the state is worth saving
            logging.error("%s", error)
            signal.request("the loss of a reader process")
            if alone:
                raise Interrupted from None
            self._stream = self._open(workers=0)  # until all processes have agreed to stop
            _, batch = next(self._stream)
        self._done += 1
        return mesh_lib.to_global(batch, self._layout)


class _Step:
    """The run's step with the arguments that stay the same: constant sentences and the random key."""

    def __init__(self, run: Run) -> None:
        self._function, whole = run.train_step, mesh_lib.replicated(run.mesh)
        seed = run.config.seed
        constants = mesh_lib.distribute(np.asarray(run.data.plan.constant_tokens), whole)
        self._same = constants, jax.jit(lambda: random_key(seed, STEPS), out_shardings=whole)()
        self._size: tuple[int, ...] = ()

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        arguments = (state, batch, *self._same)
        size = next(iter(batch.values()))["image"].shape[-3:-1]
        if size != self._size:
            if self._size:
                logging.info("images of %s x %s pixels from here on: the step is compiled for them", *size)
            if not processes.alone():
                self._function.lower(*arguments).compile()
                processes.barrier("compiled")  # on CPUs, who is half a minute late to the first collective is lost
        self._size = size
        return self._function(*arguments)
