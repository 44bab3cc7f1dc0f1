"""Hooks of the training loop: what happens at the start, after a step, after a save, and at the end.

Logging, finiteness, saving, evaluation, profiling, stopping and the report are hooks themselves. A further hook is one
class; `config.train.hooks` names it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from irm_jax.checkpoint import Checkpointer
from irm_jax.errors import ConfigError, UserError
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.logs import run_record, timing, writers
from irm_jax.models.config import to_json
from irm_jax.parallel import processes
from irm_jax.training import estimates
from irm_jax.training.optimizer import evaluation_params
from irm_jax.training.state import TrainState
from irm_jax.training.step import StepMetrics
from irm_jax.training.stop_signal import Interrupted, Stopped, StopSignal

if TYPE_CHECKING:
    from irm_jax.run import Run

Metrics = StepMetrics


class NonFiniteLoss(UserError):
    """A loss became infinite or NaN. The message names the step, the task and the last good checkpoint."""


class Hook:
    """Does nothing at any moment; a subclass defines the moments that it cares about.

    Steps are numbered from 1: the number of updates done. Over several processes every process has the same hooks.
    """

    def on_start(self, training: Training, state: TrainState) -> None:
        """Before the first step."""

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Once `step` is under way. Reading `state` or `metrics` waits for the device; the next step takes `state`."""

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        """Once the metrics of `step` are known, while the next step runs. What is added to `values` is logged too."""

    def on_save(self, step: int, state: TrainState) -> None:
        """Once the state of `step` is saved."""

    def on_end(self, state: TrainState) -> None:
        """Once the last step is saved and the resources of the loop are closed."""


class Hooks(Hook):
    """Several hooks, called in order."""

    def __init__(self, hooks: Sequence[Hook]) -> None:
        self._hooks = tuple(hooks)

    def on_start(self, training: Training, state: TrainState) -> None:
        for hook in self._hooks:
            hook.on_start(training, state)

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        for hook in self._hooks:
            hook.on_step(step, state, metrics)

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        for hook in self._hooks:
            hook.on_metrics(step, values)

    def on_save(self, step: int, state: TrainState) -> None:
        for hook in self._hooks:
            hook.on_save(step, state)

    def on_end(self, state: TrainState) -> None:
        for hook in self._hooks:
            hook.on_end(state)


class Training:
    """A run that is being trained, as hooks see it.

    Attributes:
        run: the parts of the run.
        workdir: its folder.
        checkpoints: its checkpoints.
        signal: whether a signal asked to stop.
        consensus: whether all processes agree to stop.
        start, steps: the step that it starts from and the last one.
        resumed: whether it starts from a checkpoint.
        hooks: the hooks, as one.
        timer: times the steps.
        resources: what is closed when the loop ends, by an error too; hooks enter their own contexts.
        evaluation: what the evaluation at the end found, None before and without one.
        save_requested: whether a hook wants the step under way to be saved; `Saving` clears it.
    """

    def __init__(
        self, run: Run, workdir: epath.Path, checkpoints: Checkpointer, signal: StopSignal, hooks: Sequence[Hook]
    ) -> None:
        self.run, self.workdir, self.checkpoints, self.signal = run, workdir, checkpoints, signal
        self.hooks = Hooks(hooks)
        self.consensus = processes.StopConsensus(run.mesh, lambda: signal.requested)
        self.start, self.steps, self.resumed = 0, run.config.train.steps, False
        self.resources = contextlib.ExitStack()
        self.evaluation: Evaluation | None = None
        self.save_requested = False
        self._pending: tuple[int, Metrics] | None = None

    @functools.cached_property
    def timer(self) -> timing.StepTimer:
        rows = self.run.data.plan.batch_size * self.run.config.optimizer.accumulate
        return timing.StepTimer(rows, self.start, self.run.ideal_seconds())

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """How the run is made: configuration, versions, devices."""
        return run_record.run_record(self.run.config.to_dict(), self.run.config.seed)

    @functools.cached_property
    def fingerprint(self) -> dict[str, Any]:
        """What the training data is, see `TrainingData.fingerprint`."""
        return self.run.data.fingerprint()

    @functools.cached_property
    def metric_log(self) -> writers.MetricLog:
        """Where metrics are written; opened when first asked for, within the loop."""
        resumed_from = self.start if self.resumed else None
        start = writers.RunStart(self.workdir, resumed_from, self.steps, self.record["config"])
        log = writers.MetricLog.open(self.run.config.logs.writers, start, primary=processes.is_main())
        return self.resources.enter_context(log)

    @functools.cached_property
    def embedding_model(self) -> EmbeddingModel:
        """The model of evaluations, which set its variables."""
        return self.run.embedding_model({})

    def fetch_metrics(self) -> None:
        """Waits for the metrics of the step under way, if they are not known yet, and gives them to the hooks."""
        if self._pending is not None:
            (step, metrics), self._pending = self._pending, None
            self.hooks.on_metrics(step, metrics.on_host())

    def set_pending(self, step: int, metrics: Metrics) -> None:
        """Makes these the metrics that `fetch_metrics` waits for."""
        self._pending = step, metrics

    def save(self, state: TrainState) -> None:
        """Saves a state once its metrics were seen by all hooks, so that nothing is saved that is not finite."""
        self.fetch_metrics()
        metadata = {
            "fingerprint": self.fingerprint, "config": self.record["config"], "model": to_json(self.run.model.config),
        }  # fmt: skip
        self.checkpoints.save(int(state.step), state, metadata)

    def stop(self, state: TrainState) -> NoReturn:
        """Saves the state and raises Stopped."""
        self.save(state)
        self.checkpoints.wait()
        raise Stopped(
            f"stopped by {self.signal.name or 'another process'} after step {int(state.step)}; the state is saved in "
            f"{self.checkpoints.directory}. Run the same command again to continue."
        )


class Stopping(Hook):
    """Ends the run once a signal came to any process: all stop after the same step, its state saved."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training
        self._votes: dict[int, jax.Array | None] = {}

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._votes[step] = self._training.consensus.cast()

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        self._training.consensus.read(self._votes.pop(step))

    def on_save(self, step: int, state: TrainState) -> None:
        if self._training.consensus.stop:
            self._training.stop(state)


class FetchMetrics(Hook):
    """Fetches the metrics of the step before while a step runs, so that the device never waits for the host."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._training.fetch_metrics()
        self._training.set_pending(step, metrics)


class Finiteness(Hook):
    """Ends the run at the first metric that is not finite."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._checkpoints = training.checkpoints

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        require_finite(values, step, self._checkpoints)


def require_finite(values: Mapping[str, float], step: int, checkpoints: Checkpointer) -> None:
    """Raises NonFiniteLoss naming the step, the tasks and the checkpoint to return to."""
    bad = sorted(name for name, value in values.items() if not math.isfinite(value))
    if not bad:
        return
    tasks = sorted({name.split("/")[0] for name in bad if "/" in name}) or ["all"]
    last_good = checkpoints.latest_step()
    good = f"step {last_good} in {checkpoints.directory}" if last_good is not None else "none was saved yet"
    raise NonFiniteLoss(
        f"step {step}: not finite: {', '.join(bad)} (task {', '.join(tasks)}). Last good checkpoint: {good}. Lower "
        "config.optimizer.learning_rate or set config.optimizer.clip_norm, and run again to continue from it."
    )


class Evaluating(Hook):
    """Evaluates every `config.train.evaluate_every` steps and at the end; the score chooses the best checkpoint.

    A step is saved before it is evaluated, so that whatever ends the evaluation loses nothing. An evaluation that
    never ended is made up for when the run is resumed.
    """

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training
        start = training.start
        if training.resumed and self._is_due(start) and not training.checkpoints.metrics(start):
            self._score(state)
            training.timer.restart(start)

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self._is_due(step):
            self._training.save_requested = True

    def on_save(self, step: int, state: TrainState) -> None:
        if self._is_due(step):
            self._score(state)

    def on_end(self, state: TrainState) -> None:
        training = self._training
        try:
            found = self._evaluate(state)
        except Interrupted:
            training.stop(state)
        training.evaluation = found
        metric = training.run.config.checkpoint.best_metric
        training.checkpoints.set_metrics(int(state.step), {metric: found.score(metric)})

    def _is_due(self, step: int) -> bool:
        every = self._training.run.config.train.evaluate_every
        return bool(every) and step < self._training.steps and step % every == 0

    def _score(self, state: TrainState) -> None:
        """Gives a saved step the metric by which the best one is chosen, unless a signal comes."""
        training, metric = self._training, self._training.run.config.checkpoint.best_metric
        with contextlib.suppress(Interrupted):
            scores = {metric: self._evaluate(state).score(metric)}
            training.checkpoints.set_metrics(int(state.step), scores)
            training.metric_log.write(int(state.step), scores)
        if training.consensus.stop:
            training.stop(state)

    def _evaluate(self, state: TrainState) -> Evaluation:
        training, model = self._training, self._training.embedding_model
        params = evaluation_params(state.params, state.opt_state)
        model.variables = {"params": params, "batch_stats": state.batch_stats}
        if processes.alone():
            with training.signal.at_once():
                return training.run.evaluate(model)
        model.between_batches = self._leave_if_agreed  # all at once: a batch is computed by all of them
        return training.run.evaluate(model)

    def _leave_if_agreed(self) -> None:
        if self._training.consensus.decide():
            raise Interrupted


class Report(Hook):
    """Writes results.json, report.html and per-query results of the evaluation at the end."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training

    def on_end(self, state: TrainState) -> None:
        training, found = self._training, self._training.evaluation
        if found is None:
            return
        training.signal.release()  # the state is saved and evaluated: a signal may end the process now
        written = write_evaluation(
            training.workdir, training.run.config, training.embedding_model, found, training.record,
            step=int(state.step),
        )  # fmt: skip
        logging.info("done: report at %s", written / "report.html")


class Logging(Hook):
    """Writes run.json, the metrics every `config.train.log_every` steps, and the progress line."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training
        run_record.append_run_record(training.workdir, training.record)
        plan = training.run.data.plan
        rows = (f"{plan.title(u)} {u.identities * plan.batch_blocks}x{u.unit.images_per_identity}" for u in plan.units)
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        logging.info(
            "%s parameters on mesh %s; rows per batch: %s", f"{count:,}", dict(training.run.mesh.shape), ", ".join(rows)
        )
        _ = training.metric_log
        self._pace = estimates.Pace(training.start, estimates.same_size_until(training))

    def on_metrics(self, step: int, values: dict[str, float]) -> None:
        training = self._training
        self._pace.finished(step)
        values |= training.timer.finished(step)
        if step % training.run.config.train.log_every == 0 or step == training.steps:
            training.metric_log.write(step, values)
        training.metric_log.progress(step, values)


class Saving(Hook):
    """Saves every `config.checkpoint.every` steps, at the end, where another hook asks for it, and before a stop."""

    def on_start(self, training: Training, state: TrainState) -> None:
        self._training = training

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        training, every = self._training, self._training.run.config.checkpoint.every
        due = step == training.steps or (every and step % every == 0)
        if due or training.save_requested or training.consensus.stop:
            training.save_requested = False
            training.save(state)
            training.hooks.on_save(step, state)
            training.timer.restart(step)


class Profiling(Hook):
    """Writes a profiler trace of the steps that `config.profile` names."""

    def on_start(self, training: Training, state: TrainState) -> None:
        profile = timing.Profile(training.run.config.profile, training.workdir)
        self._profile = training.resources.enter_context(profile)
        self._profile.before(training.start + 1, None)

    def on_step(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._profile.before(step + 1, metrics)


BEFORE: tuple[type[Hook], ...] = (Stopping, FetchMetrics, Finiteness, Evaluating, Report)
AFTER: tuple[type[Hook], ...] = (Logging, Saving, Profiling)
"""Hooks of every run, called before and after the hooks that `config.train.hooks` names."""
HOOKS: dict[str, type[Hook]] = {}
"""Further hooks that `config.train.hooks` may name."""


def hooks_of(config: ConfigDict, *, without: Sequence[type[Hook]] = ()) -> list[Hook]:
    """Returns the hooks of a run, in the order in which they are called.

    `without` leaves some out, say `(Evaluating,)` for a training without its evaluations.

    Raises ConfigError for a name that stands for no hook.
    """
    kinds = (*BEFORE, *(_named(name) for name in config.train.hooks), *AFTER)
    return [kind() for kind in kinds if kind not in without]


def _named(name: str) -> type[Hook]:
    module, colon, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute) if colon else HOOKS[name]
    except (ImportError, AttributeError, KeyError) as error:
        raise ConfigError(
            f"config.train.hooks: {name!r} cannot be found ({type(error).__name__}: {error}); write "
            f"'package.module:Class', or one of {', '.join(HOOKS) or 'the names in irm_jax.training.hooks.HOOKS'}"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise ConfigError(f"config.train.hooks: {name!r} is no subclass of irm_jax.training.hooks.Hook")
    return found
