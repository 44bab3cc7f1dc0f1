"""A run of `train` that is told to start from converted weights starts from them, and one that resumes does not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import weights
from flax.traverse_util import flatten_dict

from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax import checkpoint, modes
from irm_jax.config.check import check
from irm_jax.convert import __main__ as command
from irm_jax.convert import folder, manifest
from irm_jax.errors import ConfigError
from irm_jax.run import Run, build
from irm_jax.training import loop

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


class Started(Exception):
    """Carries the state that the first step was given."""


@pytest.fixture
def config(make_run_config, tmp_path, monkeypatch):
    """A run whose text encoder, layers that read images, and heads on them come from an ALBEF of its sizes."""
    config = make_run_config()
    words = Tokenizer("builtin", 8).entries
    monkeypatch.setattr(weights, "WIDTH", config.model.width)
    monkeypatch.setattr(weights, "HIDDEN", int(config.model.width * config.model.mlp_ratio))
    shapes = weights.albef() | weights.word_head("text_encoder.", words=len(words))
    shapes |= weights.bert("text_encoder.bert.", layers=2, fusion=1, words=len(words))
    shapes = {name: shape for name, shape in shapes.items() if ".layer.3." not in name and ".layer.2." not in name}
    shapes["text_encoder.bert.embeddings.position_embeddings.weight"] = (70, config.model.width)
    weights.write(shapes, tmp_path / "albef.safetensors")
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    out = str(tmp_path / "converted")
    arguments = ["--kind", "albef", "--source", str(tmp_path / "albef.safetensors"), "--out", out, "--heads", "2"]
    assert command.main(arguments) == 0
    config.init.text_encoder = out
    check(config)
    return config


@pytest.fixture
def first_state(monkeypatch):
    """Runs `train` up to its first step; returns the state that the step was given."""

    def started(before, *_):
        raise Started(before)

    monkeypatch.setattr(Run, "train_step", property(lambda _: started))

    def run(config, workdir):
        with pytest.raises(Started) as caught:
            modes.train(config, workdir)
        return caught.value.args[0]

    return run


def test_a_fresh_run_starts_from_the_converted_weights_and_a_resumed_one_does_not(
    config, first_state, tmp_path, monkeypatch
):
    state = first_state(config, tmp_path / "run")
    assert int(state.step) == 0
    _, arrays = folder.load(config.init.text_encoder)
    params, momentum = (flatten_dict(jax.device_get(x), sep="/") for x in (state.params, state.momentum_params))
    taken = {path: a for path, a in arrays.items() if path.split("/")[0] in ("text_encoder", *manifest.WITH_TEXT)}
    assert len(taken) > 40
    for path, array in taken.items():
        if path == "text_encoder/position_embedding":  # 70 there, fewer here
            array = array[: params[path].shape[0]]
        for found in (params[path], momentum[path]):
            np.testing.assert_array_equal(found[: len(array)], array, err_msg=path)
    assert 0.01 < np.abs(params["replaced_head/kernel"]).max() < 2  # not in an ALBEF: drawn as ever
    assert np.ptp(params["image_encoder/special_tokens"]) > 0.01

    # A vocabulary that does not suit ends a fresh run; a resumed one has no choice any more.
    def refuse(*_):
        raise ConfigError("other words")

    monkeypatch.setattr(Run, "check_vocabulary", refuse)
    with pytest.raises(ConfigError, match="other words"):
        modes.train(config, tmp_path / "other")

    # The same configuration, now with a checkpoint.
    own = dataclasses.replace(
        state,
        step=state.step + 2,
        params={**state.params, "matching_head": jax.tree.map(jnp.ones_like, state.params["matching_head"])},
    )
    fingerprint = build(config).data.fingerprint()
    with checkpoint.Checkpointer(tmp_path / "run" / loop.CHECKPOINTS, async_=False) as checkpoints:
        checkpoints.save(2, own, {"fingerprint": fingerprint, "config": config.to_dict()})
    resumed = first_state(config, tmp_path / "run")
    assert int(resumed.step) == 2
    np.testing.assert_array_equal(resumed.params["matching_head"]["kernel"], 1)
