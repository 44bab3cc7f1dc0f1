"""Which objectives a configuration switches on, and one that a user adds."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import pytest

from irm_jax import objectives
from irm_jax.compile import programs
from irm_jax.errors import ConfigError
from irm_jax.models.irm import EDITED_GROUPS
from irm_jax.objectives.base import Objective, Term, TrainingMix
from irm_jax.run import build


@dataclasses.dataclass(frozen=True)
class FeatureNorm(Objective):
    """Keeps the length of the person features near one."""

    name: ClassVar[str] = "feature_norm"
    kinds: ClassVar[tuple[str, ...]] = EDITED_GROUPS

    weight: float

    @classmethod
    def from_config(cls, config, mix):
        del mix
        return cls(config.objectives.feature_norm.weight)

    def loss(self, inputs):
        away = jnp.mean(jnp.square(jnp.linalg.norm(inputs.output.edited.person, axis=-1) - 1.0))
        return Term(self.weight * away, {"feature_norm": away})


@pytest.fixture
def trad_config(micro_config):
    with micro_config.unlocked():
        for name in set(micro_config.data.train) - {"procedural_trad"}:
            del micro_config.data.train[name]
    micro_config.data.batch_size = 32
    return micro_config


@pytest.mark.usefixtures("first_devices")
def test_a_further_objective_is_one_class_and_one_line(trad_config, monkeypatch):
    monkeypatch.setitem(objectives.OBJECTIVES, "feature_norm", FeatureNorm)
    with trad_config.unlocked():
        trad_config.objectives.feature_norm = {"weight": 0.5}
    run = build(trad_config)
    assert [objective.name for objective in run.objectives] == ["identity_triplet", "captions", "feature_norm"]
    batch = programs.abstract_batch(run)
    constants, key = jnp.asarray(run.data.plan.constant_tokens), jax.eval_shape(lambda: jax.random.key(0))
    _, metrics = jax.eval_shape(run.train_step, run.abstract_state(), batch, constants, key)
    assert {"feature_norm", "trad/loss"} <= metrics.keys()


def test_an_objective_that_nobody_registered(trad_config):
    mix = TrainingMix.of(build(trad_config).data, 16)
    for name in ("feature_norm", "captions"):
        with trad_config.unlocked():
            trad_config.objectives = {name: {}}
        with pytest.raises(ConfigError, match=rf"config.objectives.{name}: there is no such further objective"):
            objectives.build(trad_config, mix)


def test_the_bank_is_an_objective_of_its_own(trad_config):
    trad_config.memory_bank.size = 64
    run = build(trad_config)
    assert [objective.name for objective in run.objectives] == ["identity_triplet", "memory_bank", "captions"]
    assert run.memory.momentum
    assert run.memory.bank.size == 64
    trad_config.memory_bank.overlaps = ("procedural_trad:elsewhere",)
    with pytest.raises(ConfigError, match=r"memory_bank.overlaps names elsewhere, which is not trained on"):
        _ = build(trad_config).objectives
