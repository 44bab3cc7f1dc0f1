"""Goodput, speed and MFU on a made-up clock; which steps are traced; a training that writes its trace."""

import jax
import pytest

from irm_jax import run
from irm_jax.compile import chips, programs
from irm_jax.config import check
from irm_jax.logs import timing
from irm_jax.logs.timing import StepTimer, profiled_steps
from irm_jax.parallel import mesh as mesh_lib


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_goodput_counts_steps_and_nothing_else():
    clock = Clock()
    timer = StepTimer(8, 0, ideal_seconds=0.5, age=20.0, clock=clock)
    clock.pass_by(30)  # compiles, and runs step 1
    assert timer.finished(1)["goodput"] == 0
    timer.wait_for(lambda: clock.pass_by(3))
    clock.pass_by(7)
    found = timer.finished(2)
    assert found["goodput"] == pytest.approx(7 / 60)
    assert found["data_wait"] == pytest.approx(3 / 40)
    assert found["images_per_second"] == pytest.approx(16 / 40)
    assert found["mfu"] == pytest.approx(0.5 * 2 / 40)
    clock.pass_by(40)  # saves and evaluates
    timer.restart(2)
    for step in range(3, 13):
        clock.pass_by(2)
        found = timer.finished(step)
    assert found["goodput"] == pytest.approx(27 / 120)
    assert found["images_per_second"] == pytest.approx(4)
    assert found["mfu"] == pytest.approx(0.25)
    assert "mfu" not in StepTimer(8, 0, clock=clock).finished(1)


def test_the_process_has_an_age():
    first = timing.process_age()
    assert 0 < first <= timing.process_age() < 1e7


def test_steps_of_a_profile():
    assert profiled_steps("10:20") == range(10, 20)
    assert not profiled_steps("")
    for wrong in ("10", "20:10", "0:5", "a:b", "10:10"):
        with pytest.raises(ValueError, match="START:STOP"):
            profiled_steps(wrong)


def test_a_profile_that_begins_after_the_last_step_is_refused(micro_config):
    micro_config.profile = "5:7"
    with pytest.raises(check.ConfigError, match=r"config.profile = '5:7' begins after the last step"):
        check.check(micro_config)


def test_ideal_seconds_are_the_products_at_the_chips_peak(micro_config, monkeypatch):
    """Of two chips, half those of one; kept activations or not, the same."""
    data = run.build(micro_config).data
    monkeypatch.setattr(chips, "chip_of", lambda _: chips.CHIPS["v5e"])
    meshes = [mesh_lib.make_mesh({"data": n, "fsdp": 1, "model": 1}, jax.devices()[:n]) for n in (1, 2)]
    one, two = (programs.ideal_seconds(run.build(micro_config, mesh=mesh, data=data)) for mesh in meshes)
    assert one == pytest.approx(2 * two)
    assert 0 < one < 1
    with jax.set_mesh(meshes[1]):  # as training asks
        assert programs.ideal_seconds(run.build(micro_config, mesh=meshes[1], data=data)) == two
    micro_config.model.remat = "full"
    assert programs.ideal_seconds(run.build(micro_config, mesh=meshes[0], data=data)) == pytest.approx(one)


def test_mfu_needs_a_known_chip():
    assert chips.chip_of("TPU v5 lite") is chips.CHIPS["v5e"]
    assert chips.chip_of("cpu") is None
