"""Comparing a checkpoint with what is run now: arrays, data plan, model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from small_state import abstract, build

from irm_jax.checkpoint import Checkpointer, CheckpointError, check_fingerprint, check_model, check_record, saved_model
from irm_jax.models import config, presets


def test_mismatches_name_path_and_both_shapes(saved: Path, mesh: Mesh) -> None:
    target = abstract(mesh)
    with Checkpointer(saved, keep=9) as checkpointer:
        with pytest.raises(CheckpointError) as caught:
            checkpointer.restore(abstract(mesh, width=64))
        message = str(caught.value)
        assert "params/encoder/kernel: saved float32[16,32], expected float32[16,64]" in message
        assert "11 of 13 arrays differ" in message
        assert "and 1 more" in message
        assert "another preset?" in message
        assert str(saved) in message

        more = {**target.params, "extra": {"bias": target.params["encoder"]["bias"]}}
        missing = dataclasses.replace(target, params=more)
        with pytest.raises(CheckpointError, match=r"params/extra/bias: expected float32\[32\], missing in the check"):
            checkpointer.restore(missing)
        fewer = dataclasses.replace(target, batch_stats={})
        with pytest.raises(CheckpointError, match=r"batch_stats/neck/mean: saved float32\[32\], unknown to this model"):
            checkpointer.restore(fewer)
        other = jax.ShapeDtypeStruct((), jnp.float32, sharding=target.step.sharding)
        with pytest.raises(CheckpointError, match=r"step: saved int32\[\], expected float32\[\]"):
            checkpointer.restore(dataclasses.replace(target, step=other))
        with pytest.raises(ValueError, match="needs a sharding"):
            checkpointer.restore(jax.eval_shape(lambda: build(0)))
        # Nothing is wrong with the checkpoint itself.
        assert int(checkpointer.restore(target)[0].step) == 2


def test_fingerprint_lists_every_differing_key() -> None:
    units = [{"dataset": "a", "share": 0.5}, {"dataset": "b"}]
    saved = {"units": units, "seed": 1, "old": {}, "blocks": 8}
    check_fingerprint(saved, {**saved, "units": tuple(units), "blocks": np.int64(8)})
    now = {"units": [{"dataset": "a", "share": 0.25}], "seed": 1, "new": None, "blocks": 8}
    with pytest.raises(CheckpointError) as caught:
        check_fingerprint(saved, now)
    listed = [line for line in str(caught.value).splitlines() if line.startswith("  ")]
    assert listed == [
        "  new: checkpoint absent, now null",
        "  old: checkpoint {}, now absent",
        "  units[0].share: checkpoint 0.5, now 0.25",
        '  units[1].dataset: checkpoint "b", now absent',
    ]
    with pytest.raises(CheckpointError, match=r"differ\):\n  data.a: other contents \(their hashes differ\)\n"):
        check_fingerprint({"data": {"a": "0" * 64}}, {"data": {"a": "f" * 64}})


SHAPES = {
    "params/head_person": jax.ShapeDtypeStruct((16, 192), jnp.float32),
    "params/text_encoder/word_embedding": jax.ShapeDtypeStruct((512, 16), jnp.float32),
}
TABLE = {"preset": "tiny", "width": 16, "image_size": [64, 32], "vocab_multiple": 256, "identity_multiple": 64}
"""A table `config.model` as a checkpoint holds it, as far as it is set."""


def test_a_checkpoint_says_of_what_model_it_is() -> None:
    model = presets.preset("tiny", width=16, image_size=(64, 32), vocab_size=512, num_identities=192)
    assert saved_model({"model": config.to_json(model)}, {}) == model
    # Older ones are resolved from the table that they were trained with; the arrays say what the data added.
    assert saved_model({"config": {"model": TABLE}}, SHAPES) == model
    with pytest.raises(config.ModelConfigError, match="unknown keys depth"):
        saved_model({"model": {**config.to_json(model), "depth": 1}}, {})


@pytest.mark.parametrize(
    ("record", "table"),
    [({}, "config"), ({"config": [1]}, "config"), ({"config": {}}, "fingerprint.vocabulary"),
     ({"config": {}, "fingerprint": [1]}, "fingerprint"), ({"config": {}, "fingerprint": {"words": 1}}, "fingerprint")],
)  # fmt: skip
def test_a_record_of_another_version_is_named(record, table) -> None:
    check_record({"config": {}, "fingerprint": {"vocabulary": 1}}, "step 3 in run")
    with pytest.raises(CheckpointError, match=f"the record of step 3 in run has no table {table}.*another version"):
        check_record(record, "step 3 in run")


def test_models_are_compared_by_their_resolved_values(monkeypatch: pytest.MonkeyPatch) -> None:
    model = presets.preset("tiny", vocab_size=512, num_identities=192)
    # Free keys, and the numbers of words and identities, which follow the data.
    check_model(model, dataclasses.replace(model, remat="full", dtype="bfloat16", num_identities=1024, vocab_size=256))
    other = dataclasses.replace(model, width=256, image_size=(256, 128))
    message = (
        r"another model: config\.model\.width: checkpoint 128, now 256; config\.model\.image_size: checkpoint \[128"
    )
    with pytest.raises(CheckpointError, match=message):
        check_model(model, other)
    with pytest.raises(CheckpointError, match=r"and \d+ more\. Set these keys as they were"):
        check_model(model, presets.preset("base"))
    # A key that was renamed, and one that was added, since the checkpoint was saved.
    saved = {"width_of_all": 128, **config.to_json(model)}
    del saved["width"], saved["image_encoder"]
    monkeypatch.setattr(config, "VERSION", 2)
    monkeypatch.setattr(config, "RENAMED", {2: {"width_of_all": "width"}})
    check_model(saved_model({"model": saved}, {}), model)
