"""What is said of a training before it starts and after ten steps."""

import re
import shutil
import types

import pytest

from irm_jax import modes
from irm_jax.config import load
from irm_jax.errors import ConfigError
from irm_jax.training import estimates, hooks


def simulated(keep: int, every: int, evaluate_every: int, steps: int, start: int, there: int, scored: bool) -> int:
    """The most checkpoints at a time, by saving one after the other; the worst place of the best one."""
    kept = there
    most = there
    for step in range(start + 1, steps + 1):
        if step == steps or (every and step % every == 0) or (evaluate_every and step % evaluate_every == 0):
            kept += 1
            most = max(most, kept)  # the old one goes once the new one is complete
            kept = min(kept, keep + bool(evaluate_every or scored))
    return most


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize(("every", "evaluate_every"), [(0, 0), (10, 0), (10, 15), (0, 7), (1000, 0)])
@pytest.mark.parametrize(
    ("steps", "start", "there", "scored"),
    [(40, 0, 0, False), (40, 20, 1, False), (40, 20, 1, True), (40, 40, 2, False), (5, 0, 0, False)],
)
def test_checkpoints_on_the_disk(keep, every, evaluate_every, steps, start, there, scored) -> None:
    """A finished run that goes on keeps its old end, the only one that was evaluated, beside the newest."""
    if there > keep:
        pytest.skip("a run has no more than it keeps")
    config = load("quickstart")
    config.checkpoint.update({"keep": keep, "every": every})
    config.train.update({"steps": steps, "evaluate_every": evaluate_every})
    most = simulated(keep, every, evaluate_every, steps, start, there, scored)
    assert estimates.checkpoints_at_most(config, start, there, scored) == (most, most - there)


def test_the_time_is_said_after_ten_steps(caplog) -> None:
    now = iter([100.0, 125.0])  # 2.5 s a step, once the first one is done
    caplog.set_level("INFO", logger="absl")
    pace = estimates.Pace(20, 1031, clock=lambda: next(now))
    for step in range(21, 40):
        pace.finished(step)
    [line] = caplog.messages
    assert line.startswith("2.5 s a step: 42 min to step 1,031, at about ")
    assert "memory used at most so far: " in line


def test_the_steps_of_one_size() -> None:
    growth = ((0, (64, 32)), (600, (96, 48)), (1000, (128, 64)))
    run = types.SimpleNamespace(data=types.SimpleNamespace(options=types.SimpleNamespace(growth=growth)))
    for start, last in ((0, 600), (599, 600), (600, 1000), (1000, 1500), (1400, 1500)):
        training = types.SimpleNamespace(run=run, start=start, steps=1500)
        assert estimates.same_size_until(training) == last


def test_remat_that_saves_nothing() -> None:
    config = load("quickstart")
    assert not estimates.remat_saves_nothing(config, "cpu")
    config.model.remat = "minimal"
    assert estimates.remat_saves_nothing(config, "cpu")
    assert not estimates.remat_saves_nothing(config, "tpu")
    config.model.scan_layers = True
    assert not estimates.remat_saves_nothing(config, "cpu")


@pytest.mark.nightly
@pytest.mark.usefixtures("first_devices", "quick_programs")
def test_a_disk_that_does_not_hold_the_checkpoints_is_refused(make_run_config, tmp_path, monkeypatch, caplog) -> None:
    config = make_run_config()
    caplog.set_level("INFO", logger="absl")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda _: usage._replace(free=2**20))
    with pytest.raises(ConfigError, match=r"does not hold the run's checkpoints: 2 checkpoints of .*, where 1\.0 MiB"):
        modes.train(config, tmp_path, hooks.hooks_of(config, without=(hooks.Evaluating, hooks.Report)))
    assert not list(tmp_path.glob("checkpoints/[0-9]*"))
    [said] = [line for line in caplog.messages if "steps of" in line]
    assert re.match(r"4 steps of 168 rows, epochs: procedural_\w+ [\d.]+, ", said)
    assert said.endswith("of parameters and optimizer on each device")
