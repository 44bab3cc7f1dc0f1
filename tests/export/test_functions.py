"""The exported functions give what the model gives, for any number of rows."""

import dataclasses
import importlib.util
import types

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import pip_line
from irm_jax.checkpoint import CheckpointError
from irm_jax.config import keys
from irm_jax.export import __main__ as command
from irm_jax.export import functions
from irm_jax.export.functions import PLATFORMS, export_onnx, export_stablehlo, function_of
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


def drawn(rng, name):
    """Three rows of each input; the second sentence is padded."""
    inputs = []
    for shape, dtype in functions.row_shapes(CONFIG, name):
        inputs.append(rng.integers(1, 32 if dtype == np.int32 else 256, (3, *shape)).astype(dtype))
        if dtype == np.int32:
            inputs[-1][1, 4:] = 0
    return inputs


def test_the_configuration_names_the_functions_and_formats():
    assert tuple(functions.FUNCTIONS) == keys.EXPORT_FUNCTIONS
    assert tuple(functions.NEEDS) == keys.EXPORT_FORMATS


@pytest.mark.usefixtures("quick_programs")
def test_exported_function_equals_the_model(trained):
    model, variables = trained
    exported = export_stablehlo(model, variables, "embed_sentence")
    if importlib.util.find_spec("flatbuffers"):  # the extra `export`: by way of a file
        exported = jax.export.deserialize(exported.serialize())
    assert exported.platforms == PLATFORMS

    def pair(m, image, sentence):
        return m.embed(m.encode_images(image), m.encode_sentences(sentence)).embedding

    rng = np.random.default_rng(1)
    image, sentence = drawn(rng, "embed_sentence")
    expected = np.asarray(jax.jit(lambda i, s: model.apply(variables, i, s, method=pair))(image, sentence))
    expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    for rows in (3, 1):
        np.testing.assert_allclose(exported.call(image[:rows], sentence[:rows]), expected[:rows], atol=1e-5)


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_programs")
@pytest.mark.filterwarnings("ignore")  # of the packages that write and run the file
@pytest.mark.parametrize("format_", functions.NEEDS)
def test_a_model_whose_editing_reads_some_patches_is_exported(trained, format_):
    """The one patch of two that is nearer to the class token, which is not the same in every image."""
    for package in functions.NEEDS[format_][0]:
        pytest.importorskip(package, reason=functions.NEEDS[format_][1])
    rng, model = np.random.default_rng(4), IRM(dataclasses.replace(CONFIG, editing_patches=1))
    variables = jax.tree.map(lambda x: (x * rng.choice([-1, 1], x.shape)).astype(np.float32), trained[1]["params"])
    variables = {"params": variables, "batch_stats": trained[1]["batch_stats"]}
    image, sentence = drawn(rng, "embed_sentence")
    expected = np.asarray(jax.jit(function_of(model, variables, "embed_sentence"))(image, sentence))
    every = np.asarray(jax.jit(function_of(trained[0], variables, "embed_sentence"))(image, sentence))
    assert np.abs(expected - every).max() > 1e-3
    data = functions.serialized(format_, model, variables, "embed_sentence")
    found = functions.loaded(format_, data, "embed_sentence")
    for rows in (3, 1):
        np.testing.assert_allclose(found(image[:rows], sentence[:rows]), expected[:rows], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shapes", "width"),
    [
        ("embed_picture", [(32, 16, 3), (32, 32, 3)], 32),
        ("search_sentence", [(10,)], 8),
        ("search_image", [(32, 16, 3)], 8),
    ],
)
def test_inputs_and_outputs_of_the_other_functions(trained, name, shapes, width):
    exported = export_stablehlo(*trained, name)
    assert [aval.shape[1:] for aval in exported.in_avals] == shapes
    assert exported.out_avals[0].shape[1:] == (width,)


def test_one_file_by_the_command(trained, tmp_path, monkeypatch, caplog):
    """A bucket of an unknown kind, and a place that is no folder, are one message."""
    monkeypatch.setattr(functions, "require", lambda formats: None)
    monkeypatch.setattr(command, "Embedder", lambda workdir: types.SimpleNamespace(model=trained[0], variables={}))
    monkeypatch.setattr(functions, "serialized", lambda *_: b"function")
    for name in ("workdir", "out"):
        places = {"workdir": str(tmp_path), "out": str(tmp_path / "f"), name: "ftp://bucket/x"}
        assert command.main(["--workdir", places["workdir"], "--out", places["out"]]) == 2
        assert f"--{name}: 'ftp://bucket/x' is on no known kind of storage" in caplog.text
    (tmp_path / "file").touch()
    assert command.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "file" / "f")]) == 2
    assert command.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "new" / "f")]) == 0
    assert (tmp_path / "new" / "f").read_bytes() == b"function"


def test_what_is_missing_is_said(monkeypatch, tmp_path, caplog):
    monkeypatch.setitem(functions.NEEDS, "onnx", (("no_such_package",), pip_line("onnx")))
    arguments = ["--workdir", str(tmp_path), "--out", str(tmp_path / "f"), "--format", "onnx"]
    assert command.main(arguments) == 2
    assert "onnx needs no_such_package, not installed here: pip install 'irm_jax[onnx]'" in caplog.text

    def nothing(workdir):
        raise CheckpointError(f"{workdir} holds no checkpoint")

    monkeypatch.setitem(functions.NEEDS, "onnx", (("jax",), ""))
    monkeypatch.setattr(command, "Embedder", nothing)
    assert command.main(arguments) == 2
    assert "holds no checkpoint" in caplog.text


@pytest.mark.filterwarnings("ignore")  # of the packages that write and run the file
@pytest.mark.parametrize("name", tuple(functions.FUNCTIONS))
def test_onnx_equals_the_model(trained, name):
    """In ONNX Runtime, with padded sentences, for any number of rows."""
    pytest.importorskip("onnxruntime", reason="needs pip install 'irm_jax[onnx]'")
    pytest.importorskip("jax2onnx", reason="needs pip install 'irm_jax[onnx]'")
    model, variables = trained
    # Random signs: sums of positive numbers alone hide what a wrong order does.
    rng = np.random.default_rng(3)
    params = jax.tree.map(lambda x: (x * rng.choice([-1, 1], x.shape)).astype(np.float32), variables["params"])
    variables = {"params": params, "batch_stats": variables["batch_stats"]}
    function = functions.loaded("onnx", export_onnx(model, variables, name).SerializeToString(), name)
    inputs = drawn(rng, name)
    expected = np.asarray(jax.jit(function_of(model, variables, name))(*inputs))
    assert np.abs(expected[0] - expected[1]).max() > 0.02
    for rows in (3, 1):
        np.testing.assert_allclose(function(*(x[:rows] for x in inputs)), expected[:rows], atol=1e-5)
