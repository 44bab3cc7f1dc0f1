"""The training loop as a whole: exact resumption, changed plans, other meshes, signals, losses that blow up."""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batches.prefetch import ReadAhead, Stream
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset
from data_pipelines.people import tested_people
from irm_jax import checkpoint, modes
from irm_jax.config import keys
from irm_jax.errors import ConfigError
from irm_jax.evaluation import folders
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel import rules
from irm_jax.run import Run, build
from irm_jax.training import hooks, loop, state
from irm_jax.training.stop_signal import Interrupted, Stopped, StopSignal

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


@pytest.fixture
def config(make_run_config):
    return make_run_config()


@pytest.fixture
def halfway(trained_run, tmp_path):
    """The workdir of a run that ended without a trace after its checkpoint of step 2."""
    workdir = tmp_path / "halfway"
    shutil.copytree(trained_run / loop.CHECKPOINTS / "2", workdir / loop.CHECKPOINTS / "2")
    shutil.copy(trained_run / "metrics.jsonl", workdir)
    return workdir


def abstract_state(config, mesh=(1, 1, 1)):
    return build(config, mesh=mesh_lib.make_mesh(dict(zip(mesh_lib.AXES, mesh, strict=True)))).abstract_state()


def train(config, workdir, *, evaluate=False):
    """Trains as `modes.train` does; without `evaluate` the evaluations and the report are left out."""
    left_out = () if evaluate else (hooks.Evaluating, hooks.Report)
    modes.train(config, workdir, hooks.hooks_of(config, without=left_out))


def saved_state(config, workdir, step, mesh=(1, 1, 1)):
    with checkpoint.Checkpointer(workdir / loop.CHECKPOINTS) as checkpoints:
        return checkpoints.restore(abstract_state(config, mesh), step)[0]


def assert_same(a, b):
    """Bit for bit: parameters, batch statistics, optimizer state, instruction mean and step."""
    compared = 0
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=rules.path_string(path))
        compared += 1
    assert compared > 100


def logged(workdir):
    """{step: losses} of metrics.jsonl, without the figures of speed; every step must be there once."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    kept = {r["step"]: {k: v for k, v in r.items() if "/" in k or k == "loss"} for r in records}
    assert len(kept) == len(records)
    return kept


class Recorder(hooks.Hook):
    """A hook as a user writes it; the configuration below names it."""

    moments = ()

    def on_start(self, training, state):
        Recorder.moments = [("start", training.start, int(state.step))]

    def on_step(self, step, state, metrics):
        Recorder.moments.append(("step", step, int(state.step)))

    def on_metrics(self, step, values):
        Recorder.moments.append(("metrics", step, values["loss"] > 0))
        values["recorded"] = float(step)

    def on_save(self, step, state):
        Recorder.moments.append(("save", step, int(state.step)))

    def on_end(self, state):
        Recorder.moments.append(("end", int(state.step)))


def test_two_steps_restored_and_two_more_equal_four_straight_steps(config, trained_run, halfway):
    straight = saved_state(config, trained_run, 4)
    earlier = saved_state(config, halfway, 2)
    assert not np.array_equal(earlier.params["head_person"], straight.params["head_person"])
    config.profile = "4:6"
    config.train.hooks = (f"{__name__}:Recorder",)
    train(config, halfway)
    assert list((halfway / "profile").rglob("*.xplane.pb"))
    *_, last = (json.loads(line) for line in (halfway / "metrics.jsonl").read_text().splitlines())
    assert 0 < last["goodput"] < 1
    assert last["recorded"] == 4.0
    assert Recorder.moments == [
        ("start", 2, 2), ("step", 3, 3), ("metrics", 3, True), ("step", 4, 4), ("metrics", 4, True), ("save", 4, 4),
        ("end", 4),
    ]  # fmt: skip
    resumed = saved_state(config, halfway, 4)
    assert int(resumed.step) == 4
    assert_same(straight, resumed)
    assert logged(halfway) == logged(trained_run)
    assert set(logged(halfway)) == {1, 2, 3, 4}


def test_a_changed_batch_is_an_error_unless_accepted_and_lays_the_bank_anew(config, halfway, caplog):
    before = saved_state(config, halfway, 2).memory_bank
    config.data.batch_blocks //= 2  # as many rows in fewer blocks: other lanes
    config.data.train.procedural_t2i.share = 0.25
    with pytest.raises(checkpoint.CheckpointError, match="accept_changes"):
        train(config, halfway)
    config.data.accept_changes = True
    config.train.steps = 2  # nothing to train: evaluation and report only
    bank = build(config).memory.bank
    restored = []
    original = state.with_relaid_banks

    def spy(*args):
        restored.append(original(*args))
        return restored[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "with_relaid_banks", spy)
        train(config, halfway)
    laid = restored[0][0].memory_bank
    assert laid.entries.identity.shape[:2] == (bank.blocks, bank.rows)
    kept = sorted(np.asarray(laid.entries.identity)[np.asarray(laid.entries.identity) >= 0])
    assert kept == sorted(np.asarray(before.entries.identity)[np.asarray(before.entries.identity) >= 0])
    assert "laid anew" in caplog.text


def test_sigterm_saves_and_the_same_command_finishes(config, trained_run, tmp_path, monkeypatch):
    config.checkpoint.every = 0  # so that only the signal can have saved something
    require_finite = hooks.require_finite

    def signalled(values, step, checkpoints):
        require_finite(values, step, checkpoints)
        if step == 1:  # step 2 is running at this moment
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(hooks, "require_finite", signalled)
        with pytest.raises(Stopped, match=r"SIGTERM after step 2; the state is saved in .*Run the same command"):
            train(config, tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.saved_steps(tmp_path / loop.CHECKPOINTS) == [2]
    assert not (tmp_path / "evaluations").exists()
    train(config, tmp_path, evaluate=True)
    assert_same(saved_state(config, trained_run, 4), saved_state(config, tmp_path, 4))
    assert (folders.newest(tmp_path) / "report.html").exists()


def make_rows(number):
    return number, {"text": {"row": np.full((8, 2**18), number, np.uint8)}}


def batches_from_3_to_9(resources, stop_signal):
    """The batches of a run whose stream has one reader process."""

    def stream(start, count, workers=1):
        return Stream(make_rows, start, start + count, ReadAhead(workers, threads=0, prefetch=1))

    config = types.SimpleNamespace(optimizer=types.SimpleNamespace(accumulate=1))
    mesh = mesh_lib.make_mesh({"data": 8, "fsdp": 1, "model": 1})
    run = types.SimpleNamespace(mesh=mesh, config=config, stream=stream)
    timer = types.SimpleNamespace(wait_for=lambda function: function())
    return loop._Batches(
        types.SimpleNamespace(run=run, start=3, steps=9, resources=resources, timer=timer, signal=stop_signal)
    )


@pytest.mark.parametrize("alone", [True, False])
def test_a_lost_reader_asks_for_the_end_and_loses_no_batch(alone, monkeypatch, caplog):
    monkeypatch.setattr(loop.processes, "alone", lambda: alone)
    stop_signal = StopSignal()
    with contextlib.ExitStack() as resources:
        batches = batches_from_3_to_9(resources, stop_signal)
        assert int(next(batches)["text"]["row"][0, 0]) == 3
        (reader,) = batches._stream._iterator._readers
        os.kill(reader.pid, signal.SIGKILL)
        os.waitid(os.P_PID, reader.pid, os.WEXITED | os.WNOWAIT)
        if alone:  # what is trained is saved at once
            with pytest.raises(Interrupted):
                next(batches)
        else:  # until all processes have agreed to stop
            assert [int(next(batches)["text"]["row"][0, 0]) for _ in range(2)] == [4, 5]
    assert stop_signal.name == "the loss of a reader process"
    assert f"(pid {reader.pid}) was ended by SIGKILL" in caplog.text


def test_a_signal_ends_the_wait_for_data_that_do_not_come(caplog):
    with StopSignal() as stop_signal, contextlib.ExitStack() as resources:
        batches = batches_from_3_to_9(resources, stop_signal)
        next(batches)
        (reader,) = batches._stream._iterator._readers
        os.kill(reader.pid, signal.SIGSTOP)
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
        timer.start()
        with pytest.raises(Interrupted):
            [next(batches) for _ in range(6)]  # the first may have been made before
        timer.join()
    assert "SIGTERM: leaving the wait for data to save" in caplog.text


def test_a_step_of_another_size_is_announced(caplog):
    caplog.set_level("INFO", logger="absl")
    run = types.SimpleNamespace(
        train_step=lambda state, *_: (state + 1, {}), config=types.SimpleNamespace(seed=0),
        mesh=mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}),
        data=types.SimpleNamespace(plan=types.SimpleNamespace(constant_tokens=np.zeros((1, 4), np.int32))),
    )  # fmt: skip
    step, done = loop._Step(run), 0
    for size in ((64, 32), (64, 32), (128, 64), (128, 64)):
        done, _ = step(done, {"text": {"image": np.zeros((1, 2, *size, 3), np.uint8)}})
    assert done == 4
    assert caplog.messages == ["images of 128 x 64 pixels from here on: the step is compiled for them"]


@pytest.mark.nightly
def test_a_run_whose_images_grow_resumes_at_the_size_of_its_step(config, tmp_path, caplog):
    """The first size of three steps, the full one of the last: resumed after two, it ends as the straight run."""
    caplog.set_level("INFO", logger="absl")
    config.data.growth = ("0=0.5", "3=1")
    train(config, tmp_path / "straight")
    assert "images of 64 x 32 pixels from here on: the step is compiled for them" in caplog.messages
    assert "32 x 16 pixels from step 1; 64 x 32 pixels from step 4" in caplog.text
    shutil.copytree(tmp_path / "straight" / loop.CHECKPOINTS / "2", tmp_path / "resumed" / loop.CHECKPOINTS / "2")
    train(config, tmp_path / "resumed")
    assert_same(*(saved_state(config, tmp_path / name, 4) for name in ("straight", "resumed")))
    config.data.growth = ()
    shutil.rmtree(tmp_path / "resumed" / loop.CHECKPOINTS / "4")
    with pytest.raises(checkpoint.CheckpointError, match="growth"):
        train(config, tmp_path / "resumed")


def test_an_evaluation_during_training_changes_nothing_and_is_kept(config, trained_run, halfway):
    config.train.evaluate_every = 3
    train(config, halfway, evaluate=True)
    assert_same(saved_state(config, trained_run, 4), saved_state(config, halfway, 4))
    _, saved = checkpoint.read_metadata(halfway / loop.CHECKPOINTS, 3)
    scores = [json.loads(line) for line in (halfway / "metrics.jsonl").read_text().splitlines()]
    assert [r["mean_mAP"] for r in scores if "mean_mAP" in r] == [saved["metrics"]["mean_mAP"]]
    assert 0 < saved["metrics"]["mean_mAP"] <= 1


def test_an_evaluation_that_never_ended_is_made_up_on_resuming(config, halfway, monkeypatch):
    config.train.evaluate_every = 2
    seen = []

    class Scored:
        def score(self, _):
            return 0.25

    def evaluate(_, embedder):
        seen.append(embedder)
        if len(seen) == 1:
            return Scored()
        raise RuntimeError("the last evaluation")

    monkeypatch.setattr(Run, "evaluate", evaluate)
    for _ in range(2):  # once only: the second time step 4 is the newest
        with pytest.raises(RuntimeError, match="the last evaluation"):
            train(config, halfway, evaluate=True)
    assert len(seen) == 3
    assert checkpoint.read_metadata(halfway / loop.CHECKPOINTS, 2)[1]["metrics"] == {"mean_mAP": 0.25}


def test_sigterm_in_the_evaluation_loses_no_training(config, halfway, monkeypatch):
    config.checkpoint.every = 0

    def evaluate(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    monkeypatch.setattr(Run, "evaluate", evaluate)
    with pytest.raises(Stopped, match="SIGTERM after step 4"):
        train(config, halfway, evaluate=True)
    assert checkpoint.saved_steps(halfway / loop.CHECKPOINTS) == [2, 4]


def test_a_failing_evaluation_loses_no_training(config, halfway, monkeypatch):
    config.checkpoint.every = 0

    def evaluate(*_):
        raise RuntimeError("no gallery")

    monkeypatch.setattr(Run, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="no gallery"):
        train(config, halfway, evaluate=True)
    assert checkpoint.saved_steps(halfway / loop.CHECKPOINTS) == [2, 4]


def test_a_loss_that_is_not_finite_stops_the_run(config, halfway, monkeypatch):
    train_step = Run.train_step.func

    def poisoned(built):
        step = train_step(built)

        def run(before, *rest):
            if int(before.step) == 2:
                before = dataclasses.replace(before, params=jax.tree.map(lambda x: x * jnp.nan, before.params))
            return step(before, *rest)

        return run

    monkeypatch.setattr(Run, "train_step", property(poisoned))
    with pytest.raises(hooks.NonFiniteLoss) as caught:
        train(config, halfway)
    message = str(caught.value)
    assert message.startswith("step 3: not finite: ")
    assert "(task cc, ctcc, li, t2i, trad, vi)" in message
    assert f"Last good checkpoint: step 2 in {halfway / loop.CHECKPOINTS}" in message
    assert checkpoint.saved_steps(halfway / loop.CHECKPOINTS) == [2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no.such.module:Hook", "'no.such.module:Hook' cannot be found"),
        ("irm_jax.training.hooks:Hok", "cannot be found"),
        ("recorder", "'recorder' cannot be found .*write 'package.module:Class'"),
        ("json:JSONDecoder", "is no subclass of irm_jax.training.hooks.Hook"),
    ],
)
def test_names_that_stand_for_no_hook(config, name, message):
    config.train.hooks = (name,)
    with pytest.raises(ConfigError, match=message):
        hooks.hooks_of(config)


def test_a_registered_hook_is_called_by_its_name(config, monkeypatch):
    monkeypatch.setitem(hooks.HOOKS, "recorder", Recorder)
    config.train.hooks = ("recorder",)
    kinds = [type(hook) for hook in hooks.hooks_of(config)]
    assert kinds == [*hooks.BEFORE, Recorder, *hooks.AFTER]


def test_parameters_that_a_step_wrecked_are_not_saved(config, halfway):
    """The loss of step 3 is finite, the parameters after it are not."""
    config.optimizer.learning_rate, config.checkpoint.every = 1e38, 1
    with pytest.raises(hooks.NonFiniteLoss, match=r"step 3: not finite: .*parameter_norm.*good checkpoint: step 2"):
        train(config, halfway)
    assert [path.name for path in (halfway / loop.CHECKPOINTS).iterdir() if path.name.isdigit()] == ["2"]


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.optimizer.update({"name": "adamv"}),
        lambda c: c.train.update({"hooks": ("nothing:Here",)}),
        lambda c: c.objectives.update({"nothing": {}}),
    ],
)
def test_what_does_not_exist_is_refused_before_data_is_opened(config, tmp_path, monkeypatch, change):
    monkeypatch.setattr(Run, "data", property(lambda _: pytest.fail("data was opened")))
    with config.unlocked():
        change(config)
    with pytest.raises(ConfigError, match=r"adamv|nothing"):
        modes.train(config, tmp_path)


def test_only_the_task_that_blew_up_is_named(tmp_path):
    with checkpoint.Checkpointer(tmp_path) as checkpoints:
        with pytest.raises(hooks.NonFiniteLoss, match=r"step 7: .*vi/triplet_loss \(task vi\).*none was saved yet"):
            hooks.require_finite({"vi/triplet_loss": float("inf"), "cc/triplet_loss": 1.0}, 7, checkpoints)
        hooks.require_finite({"vi/triplet_loss": 2.0}, 7, checkpoints)


@pytest.mark.parametrize("mesh", [(4, 1, 1), (2, 2, 2)])
def test_the_state_is_restored_into_another_mesh(config, trained_run, mesh, monkeypatch):
    monkeypatch.setattr(rules, "SMALL", 64)  # cut the small arrays of this model too
    there = saved_state(config, trained_run, 4, mesh)
    assert_same(saved_state(config, trained_run, 4), there)
    table = there.params["text_encoder"]["word_embedding"]
    assert len(table.sharding.device_set) == np.prod(mesh)
    assert table.addressable_shards[0].data.size == table.size // (mesh[1] * mesh[2])
    for bank in (there.memory_bank.entries.key, there.caption_queue.entries.text):
        assert bank.addressable_shards[0].data.size == bank.size // (mesh[0] * mesh[1])


def test_another_batch_is_another_plan(config, halfway):
    config.data.batch_size = 8 * 2 * 5 + 8
    for unit in config.data.train.values():
        unit.images_per_identity = 1 if unit.task == "t2i" else 2
    with pytest.raises(checkpoint.CheckpointError, match=r"data plan changed[^$]*checkpoint 168, now 88"):
        train(config, halfway)


def test_other_people_are_never_accepted(config, halfway):
    """Without the first data set the others' people move up in the heads."""
    config.data.accept_changes = config.data.repeat_people = True
    with config.unlocked():
        del config.data.train.procedural_cc
    with pytest.raises(
        checkpoint.CheckpointError, match=r"the people of the training data changed.*take people for oth"
    ):
        train(config, halfway)


def test_a_checkpoint_of_another_width_is_refused(config, halfway):
    config.model.width = 32
    with pytest.raises(checkpoint.CheckpointError, match=r"another model: config.model.width: checkpoint 16, now 32"):
        train(config, halfway)


def test_a_misfit_that_comes_from_the_data_says_so(config, halfway):
    config.model.identity_multiple = 256
    config.data.instruction_dropout = 0.5
    with pytest.raises(checkpoint.CheckpointError, match=r"head_person[^$]*Besides, the data plan changed[^$]*dropout"):
        train(config, halfway)


def test_clipping_can_be_switched_on_and_the_change_is_logged(config, halfway, caplog):
    config.optimizer.clip_norm = 0.5
    with caplog.at_level("WARNING", logger="absl"):
        train(config, halfway)
    assert "config.optimizer.clip_norm: checkpoint 0.0, now 0.5" in caplog.text
    assert int(saved_state(config, halfway, 4).step) == 4


def test_a_run_is_not_overwritten_without_resume_and_its_data_is_checked_once(config, halfway, monkeypatch):
    checked, leaks = [], tested_people.leaks
    monkeypatch.setattr(tested_people, "leaks", lambda *data: checked.append(data) or leaks(*data))
    config.resume = False
    with pytest.raises(checkpoint.CheckpointError, match=r"halfway holds a run at step 2 and config.resume is False"):
        train(config, halfway)
    assert len(checked) == 1


def test_blocks_that_do_not_fit_the_mesh(config):
    config.data.batch_blocks = 6
    mesh = mesh_lib.make_mesh({"data": 2, "fsdp": 2, "model": 1})
    with pytest.raises(ConfigError, match=r"batch_blocks = 6 .*batch_blocks=8 --config.data.batch_size="):
        build(config, mesh=mesh).check_training()


def test_people_who_are_tested_in_another_data_set_are_not_trained_on(config, procedural_dir, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(procedural_dir, data, symlinks=True, copy_function=os.symlink)
    trad = open_dataset(data, "procedural_trad")
    index, reader = trad.index("train"), trad.reader("train")
    records = np.flatnonzero(index.identity == index.identity[0])[:2]
    person = trad.manifest.people[index.identity[0]]

    def load(item):
        return schema.Record(image=reader[records[item]]["image"], file=f"{item}.jpg", person=person, camera=item)

    spec = DatasetSpec(
        name="borrowed", version="1.0.0", task="trad", namespace="borrowed", people=[person],
        splits={"query": [0], "gallery": [1]}, load=load, source={},
    )  # fmt: skip
    write_dataset(data, spec, BuildOptions(workers=1))
    config.data.dir = str(data)
    with config.unlocked():
        config.evaluation.sets.borrowed = keys.evaluation_set("borrowed", "trad", ("market",))
    with pytest.raises(ConfigError, match=rf"1 person.s. .*{person} of borrowed .*--leave_out borrowed"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.data.leaks = "warn"
    with caplog.at_level("WARNING"):
        build(config).check_leaks()
    assert f"{person} of borrowed" in caplog.text
