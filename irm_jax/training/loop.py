"""Training, top to bottom: data, model, state, then the loop; evaluation and report at the end."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import checkpoint, run
from irm_jax.config.check import block_problem
from irm_jax.convert import warm_start
from irm_jax.errors import ConfigError, UserError
from irm_jax.evaluation.evaluator import Evaluation
from irm_jax.evaluation.report.write import write_evaluation
from irm_jax.logs import run_record, timing, writers
from irm_jax.models.config import to_json
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import processes
from irm_jax.training import state

CHECKPOINTS = "checkpoints"


class NonFiniteLoss(UserError, RuntimeError):
    """A loss became infinite or NaN; the message names the step, the task and the last good checkpoint."""


class Stopped(SystemExit):
    """A signal asked the run to end; its state is saved."""


class Interrupted(BaseException):
    """A signal came during an evaluation, which is not worth waiting for: it changes nothing in the state."""


def train(config: ConfigDict, workdir: epath.Path) -> None:
    """Trains to `config.train.steps`, resuming if there is a checkpoint; writes everything into `workdir`."""
    # Data and model
    run.enable_compilation_cache(config)
    data = run.open_training(config)
    sets = run.open_evaluation_sets(config)
    run.check_leaks(config, data, sets)
    mesh = mesh_lib.make_mesh(config.mesh)
    check_blocks(config, mesh)
    model = run.make_model(config, data)
    optimizer = run.make_optimizer(config)
    constants = mesh_lib.distribute(np.asarray(data.plan.constant_tokens), mesh_lib.replicated(mesh))
    fingerprint = data.fingerprint()
    memory = run.memory_shapes(config, data)

    with checkpoint.Checkpointer(
        workdir / CHECKPOINTS, keep=config.checkpoint.keep, best_metric=config.checkpoint.best_metric,
        best_mode="max", async_=config.checkpoint.asynchronous,
    ) as checkpoints, StopSignal() as stop:  # fmt: skip
        # State: resumed or fresh
        latest = checkpoints.latest_step()
        if latest is not None and not config.resume:
            raise checkpoint.CheckpointError(
                f"{workdir} holds a run at step {latest} and config.resume is False; choose another --workdir, or "
                "delete the folder to start again"
            )
        if latest is None:
            run.check_words(config, data)
            train_state = state.create_state(model, optimizer, data.plan.constant_tokens, config.seed, mesh, memory)
            train_state = warm_start.warm_start(train_state, model.config, run.init_sources(config))
        else:
            abstract = state.abstract_state(model, optimizer, data.plan.constant_tokens, mesh, memory)
            train_state = restore(checkpoints, abstract, latest, fingerprint, config)
            logging.info("resumed from step %d of %s", latest, checkpoints.directory)
        start = int(train_state.step)
        parameters = sum(x.size for x in jax.tree.leaves(train_state.params))
        logging.info("%s parameters on mesh %s; batch %s", f"{parameters:,}", dict(mesh.shape), batch_words(data.plan))

        # The step
        step_function = run.train_step(config, data, model, mesh)
        accumulate = config.optimizer.accumulate
        layout = mesh_lib.batch_sharding(mesh, leading=int(accumulate > 1))
        key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=mesh_lib.replicated(mesh))()
        metadata = run_record.run_record(config.to_dict(), config.seed)
        run_record.append_run_record(workdir, metadata)

        best_metric = config.checkpoint.best_metric
        votes = processes.StopConsensus(mesh, lambda: stop.requested)

        def save(current: state.TrainState) -> None:
            saved = {"fingerprint": fingerprint, "config": metadata["config"], "model": to_json(model.config)}
            checkpoints.save(int(current.step), current, saved)

        embedder = run.embedding_model(config, model, {}, data.tokenizer, mesh)

        def evaluated(current: state.TrainState) -> Evaluation:
            embedder.variables = {"params": current.params, "batch_stats": current.batch_stats}
            if processes.alone():
                with stop.at_once():
                    return run.evaluate(config, embedder, sets)
            embedder.between_batches = leave_if_agreed  # all at once: a batch is computed by all of them
            return run.evaluate(config, embedder, sets)

        def leave_if_agreed() -> None:
            if votes.decide():
                raise Interrupted

        def wants_evaluation(step: int) -> bool:
            return bool(config.train.evaluate_every) and step < steps and step % config.train.evaluate_every == 0

        def score(current: state.TrainState) -> None:
            """Gives a saved step the figure by which the best one is chosen, unless a signal comes."""
            with contextlib.suppress(Interrupted):
                scores = {best_metric: evaluated(current).score(best_metric)}
                checkpoints.set_metrics(int(current.step), scores)
                log.write(int(current.step), scores)
            if votes.stop:
                raise stopped(current)

        def stopped(current: state.TrainState) -> Stopped:
            save(current)
            checkpoints.wait()
            return Stopped(
                f"stopped by {stop.name or 'another process'} after step {int(current.step)}; the state is saved in "
                f"{checkpoints.directory}. Run the same command again to continue."
            )

        # The loop
        steps = config.train.steps
        blocks = mesh_lib.addressable_blocks(mesh, data.plan.batch_blocks)

        def stream_from(done: int, workers: int) -> Any:
            return data.stream(
                done, max(steps - done, 0), blocks, ReadAhead(workers, config.data.threads, config.data.prefetch)
            )

        with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
            stream = stack.enter_context(stream_from(start, config.data.workers))
            profile = stack.enter_context(timing.Profile(config.profile, workdir))
            begin = writers.RunStart(workdir, start if latest is not None else None, steps, metadata["config"])
            log = stack.enter_context(writers.MetricLog.open(config.logs.writers, begin, primary=processes.is_main()))
            from irm_jax.compile import programs  # until the run passes the time on

            ideal = programs.ideal_seconds(run.build(config, mesh=mesh, data=data))
            watch = timing.StepTimer(data.plan.batch_size * accumulate, start, ideal)
            pending: tuple[int, dict[str, jax.Array], jax.Array | None] | None = None

            def check(step: int, metrics: Mapping[str, Any], vote: jax.Array | None) -> None:
                values = {name: float(value) for name, value in metrics.items()}  # waits for the device
                require_finite(values, step, checkpoints)
                values |= watch.finished(step)
                if step % config.train.log_every == 0 or step == steps:
                    log.write(step, values)
                log.progress(step, values)
                votes.read(vote)

            if latest is not None and wants_evaluation(start) and not checkpoints.metrics(start):
                score(train_state)  # the run ended within this evaluation
                watch.restart(start)
            for step in range(start + 1, steps + 1):
                profile.before(step, pending)
                try:
                    _, batch = watch.wait_for(stream.__next__)
                except RuntimeError:
                    if not stop.requested:
                        raise
                    # The signal reached the readers' processes too.
                    if processes.alone():
                        if pending is not None:
                            check(*pending)
                        raise stopped(train_state) from None
                    stream = stack.enter_context(stream_from(step - 1, workers=0))  # until all have agreed to stop
                    _, batch = next(stream)
                arguments = (mesh_lib.to_global(batch, layout), constants, key)
                if step == start + 1 and not processes.alone():
                    step_function.lower(train_state, *arguments).compile()
                    processes.barrier("compiled")  # on CPUs, who is half a minute late to the first collective is lost
                train_state, metrics = step_function(train_state, *arguments)
                vote = votes.cast()
                # The metrics of the step before are fetched while this one runs: logging never stalls the device.
                if pending is not None:
                    check(*pending)
                pending = (step, metrics, vote)
                wants_save = config.checkpoint.every and step % config.checkpoint.every == 0
                if step < steps and not (wants_evaluation(step) or wants_save or votes.stop):
                    continue
                check(*pending)  # nothing is saved that was not seen to be finite
                pending = None
                save(train_state)  # before an evaluation, so that whatever ends that loses nothing
                if votes.stop:
                    raise stopped(train_state)
                if wants_evaluation(step):
                    score(train_state)
                watch.restart(step)

        # Evaluation and report
        try:
            result = evaluated(train_state)
        except Interrupted:
            raise stopped(train_state) from None
        checkpoints.set_metrics(int(train_state.step), {best_metric: result.score(best_metric)})
    write_evaluation(workdir, config, embedder, result, metadata, step=int(train_state.step))
    logging.info("done: report at %s", workdir / "report.html")


def check_blocks(config: ConfigDict, mesh: Mesh) -> None:
    """Batch blocks must divide over the mesh that is really there. Raises ConfigError with the sizes that do."""
    if problem := block_problem(config, mesh_lib.row_shards(mesh)):
        raise ConfigError(problem)


def restore(
    checkpoints: checkpoint.Checkpointer,
    abstract: state.TrainState,
    step: int,
    fingerprint: Mapping[str, Any],
    config: ConfigDict,
) -> state.TrainState:
    """The saved state, if both the model and the data plan are those of the checkpoint; CheckpointError otherwise.

    Other settings may change from one start to the next; the log says which did. So may the data plan, if
    `config.data.accept_changes` says so. A bank of other lanes (another batch or size) is laid anew.
    """
    _, saved = checkpoint.read_metadata(checkpoints.directory, step)
    arrays = checkpoint.array_shapes(checkpoints.directory, step)
    run.check_model(checkpoint.saved_model(saved, arrays), config)
    for part in ("model", "loss", "momentum", "memory_bank", "text_to_image", "optimizer", "train", "evaluation"):
        for line in checkpoint.differences(saved["config"].get(part, {}), config[part].to_dict()):
            logging.warning("resumed with another setting: config.%s.%s", part, line)
    plan = saved["fingerprint"]
    if config.data.accept_changes:
        for line in checkpoint.differences(plan, fingerprint):
            logging.warning("resumed with other data: %s", line)
        require_same_numbers(plan, fingerprint)
        plan = fingerprint
    target = state.with_saved_banks(abstract, arrays)
    try:
        restored, _ = checkpoints.restore(target, step)
    except checkpoint.CheckpointError as error:
        try:  # other data can change the shape of an array too: then say both
            checkpoint.check_fingerprint(plan, fingerprint)
        except checkpoint.CheckpointError as besides:
            raise checkpoint.CheckpointError(f"{error}\nBesides, {besides}") from error
        raise
    checkpoint.check_fingerprint(plan, fingerprint)
    if target is not abstract:
        restored, kept = state.with_relaid_banks(restored, abstract)
        for name, count in kept.items():
            logging.warning("the %s was laid anew for this batch and size: %d keys kept", name.replace("_", " "), count)
    return restored


def require_same_numbers(saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raises CheckpointError if words or people have other numbers than in the checkpoint: no option mends that."""
    for key, rows in (
        ("vocabulary", "the word table's rows would stand for other words"),
        ("people", "identity heads, memory bank and caption queue would take people for others"),
    ):
        if saved.get(key) != current[key]:
            raise checkpoint.CheckpointError(
                f"the {key} of the training data changed since the checkpoint: {rows}. Train in a new workdir"
            )


def batch_words(plan: Any) -> str:
    """The batch in words, for the log: rows of each data set."""
    return ", ".join(
        f"{u.unit.dataset} {u.identities * plan.batch_blocks}x{u.unit.images_per_identity}" for u in plan.units
    )


def require_finite(values: Mapping[str, float], step: int, checkpoints: checkpoint.Checkpointer) -> None:
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


class StopSignal:
    """Turns SIGTERM and the first Ctrl-C into a request that the loop honours after the running step.

    Within `at_once` the request raises Interrupted instead. Signals are handled in the main thread only.
    """

    def __init__(self) -> None:
        self.requested, self.name = False, ""
        self._at_once = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self._at_once = True
        try:
            if self.requested:
                raise Interrupted
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.requested:  # asked twice: end at once
            raise KeyboardInterrupt
        self.requested, self.name = True, signal.Signals(number).name
        if self._at_once:
            logging.warning("%s: leaving the evaluation to save", self.name)
            raise Interrupted
        logging.warning("%s: saving after the running step", self.name)


__all__ = ["CHECKPOINTS", "NonFiniteLoss", "StopSignal", "Stopped", "require_finite", "train"]
