"""The exported embedding function gives what the model gives, for any number of rows."""

import importlib.util
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax import export
from irm_jax.checkpoint import CheckpointError
from irm_jax.export import PLATFORMS, embedding_function, export_embedding, export_onnx
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise

CONFIG = presets.preset(
    "tiny", width=16, image_size=(32, 16), image_depth=1, image_heads=2, text_depth=1, text_heads=2, max_length=10,
    template_heads=2, projection_width=8, editing_depth=1, vocab_size=32, num_identities=8, instruction_tokens=None,
    stem="patch", template_stem="patch",
)  # fmt: skip


@pytest.fixture(scope="module")
def trained():
    """A model and variables of random numbers."""
    model, rng = IRM(CONFIG), np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 10), jnp.int32), method=initialise))
    return model, jax.tree.map(lambda x: (0.3 * np.abs(rng.normal(size=x.shape)) + 0.05).astype(np.float32), shapes)


@pytest.mark.usefixtures("quick_programs")
def test_exported_function_equals_the_model(trained):
    model, variables = trained
    exported = export_embedding(model, variables, "text")
    if importlib.util.find_spec("flatbuffers"):  # the extra `export`: by way of a file
        exported = jax.export.deserialize(exported.serialize())
    assert exported.platforms == PLATFORMS

    def pair(m, image, sentence):
        return m.embed(m.encode_images(image), m.encode_sentences(sentence)).embedding

    rng = np.random.default_rng(1)
    image = jnp.asarray(rng.integers(0, 256, (3, 32, 16, 3), dtype=np.uint8))
    sentence = jnp.asarray(rng.integers(1, 32, (3, 10), dtype=np.int32))
    expected = np.asarray(jax.jit(lambda i, s: model.apply(variables, i, s, method=pair))(image, sentence))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for rows in (3, 1):
        np.testing.assert_allclose(exported.call(image[:rows], sentence[:rows]), expected[:rows], atol=1e-5)


def test_an_instruction_can_be_an_image(trained):
    exported = export_embedding(*trained, "image")
    assert [aval.shape[1:] for aval in exported.in_avals] == [(32, 16, 3), (32, 32, 3)]
    assert exported.out_avals[0].shape[1:] == (32,)


def test_files_that_cannot_be_reached_are_one_message(trained, tmp_path, monkeypatch, caplog):
    """A bucket of an unknown kind, and a place that is no folder."""
    monkeypatch.setitem(export.MISSING, "stablehlo", ("jax", ""))
    monkeypatch.setattr(export, "Embedder", lambda workdir: types.SimpleNamespace(model=trained[0], variables={}))
    monkeypatch.setattr(export, "export_embedding", lambda *_: types.SimpleNamespace(serialize=lambda: b"function"))
    for name in ("workdir", "out"):
        places = {"workdir": str(tmp_path), "out": str(tmp_path / "f"), name: "ftp://bucket/x"}
        assert export.main(["--workdir", places["workdir"], "--out", places["out"]]) == 2
        assert f"--{name}: 'ftp://bucket/x' is on no known kind of storage" in caplog.text
    (tmp_path / "file").touch()
    assert export.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "file" / "f")]) == 2
    assert export.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "new" / "f")]) == 0
    assert (tmp_path / "new" / "f").read_bytes() == b"function"


def test_what_is_missing_is_said(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(export.MISSING, "onnx", ("no_such_package", "pip install it"))
    arguments = ["--workdir", str(tmp_path), "--out", str(tmp_path / "f"), "--format", "onnx"]
    assert export.main(arguments) == 2
    assert "--format onnx is written with no_such_package: pip install it" in caplog.text

    def nothing(workdir):
        raise CheckpointError(f"{workdir} holds no checkpoint")

    monkeypatch.setitem(export.MISSING, "onnx", ("jax", ""))
    monkeypatch.setattr(export, "Embedder", nothing)
    assert export.main(arguments) == 2
    assert "holds no checkpoint" in caplog.text


@pytest.mark.filterwarnings("ignore")  # of the packages that write and run the file
@pytest.mark.parametrize("kind", ["text", "image"])
def test_onnx_equals_the_model(trained, kind):
    """In ONNX Runtime, with padded sentences, for any number of rows."""
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs pip install -e '.[onnx]'")
    pytest.importorskip("jax2onnx", reason="needs pip install -e '.[onnx]'")
    model, variables = trained
    # Random signs: sums of positive numbers alone hide what a wrong order does.
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: (x * rng.choice([-1, 1], x.shape)).astype(np.float32), variables["params"])
    variables = {"params": params, "batch_stats": variables["batch_stats"]}
    session = onnxruntime.InferenceSession(export_onnx(model, variables, kind).SerializeToString())
    image = rng.integers(0, 256, (3, 32, 16, 3), dtype=np.uint8)
    instruction = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    if kind == "text":
        instruction = rng.integers(1, 32, (3, 10), dtype=np.int32)
        instruction[1, 4:] = 0
    expected = np.asarray(jax.jit(embedding_function(model, variables, kind))(image, instruction))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    for rows in (3, 1):
        (found,) = session.run(["embedding"], {"image": image[:rows], "instruction": instruction[:rows]})
        np.testing.assert_allclose(found, expected[:rows], atol=1e-5)
