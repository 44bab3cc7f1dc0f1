"""`--mode export`: the folder works without this project, and its preparation of inputs is that of the model."""

import json
import subprocess
import sys

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from data_pipelines.errors import pip_line
from data_pipelines.images import pixels_of, resize
from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax import modes
from irm_jax.config import load
from irm_jax.embedder import Embedder
from irm_jax.errors import ConfigError
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.export import folder, functions, prepare
from irm_jax.export.functions import ExportError
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise
from irm_jax.parallel import mesh as mesh_lib

WITHOUT = "import runpy, sys; sys.modules.update(irm_jax=None, data_pipelines=None); sys.path.insert(0, sys.argv[1]); "
"""Begins a program that cannot import this project."""

SENTENCES = [
    "A man in a red shirt, with a backpack!",
    "Wears blue/green trousers - and a (white) coat; 3 bags & $5",
    "Žluťoučký kůň café",
    "红色衣服 and a hat_band",
    "unbelievablyunknownword " * 3,
    "word " * 60,
    "x" * 120 + " shirt",
    "",
]


@pytest.fixture
def described(tmp_path, monkeypatch):
    """What `prepare` reads, in a folder: of the built-in vocabulary, 12 ids a sentence."""

    def write(tokenizer, size=(64, 32)):
        facts = {"image_size": size, "max_length": tokenizer.max_length, "sep": tokenizer.sep}
        (tmp_path / "export.json").write_text(json.dumps(facts))
        (tmp_path / "vocab.txt").write_text("\n".join(tokenizer.entries) + "\n")
        monkeypatch.setattr(prepare, "HERE", tmp_path)

    return write


@pytest.mark.parametrize("sep", [True, False])
def test_sentences_become_the_ids_of_the_tokenizer(described, tmp_path, sep):
    words = [
        "shirt",
        "##s",
        "cafe",
        "ca",
        "##fe",
        "红",
        "色",
        "_",
        "&",
        "$",
        "hat",
        "band",
        "word",
        "b",
        "##a",
        "##g",
        "un",
    ]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "##bel", "5", "a"]
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(pieces) + "\n")
    for tokenizer in (Tokenizer("builtin", 12, sep), Tokenizer(tmp_path / "words", 9, sep)):
        described(tokenizer)
        for sentence in SENTENCES:
            np.testing.assert_array_equal(prepare.token_ids(sentence), tokenizer.encode([sentence]), sentence)


@pytest.mark.parametrize("shape", [(97, 41), (128, 64), (64, 32), (40, 20), (100, 20), (30, 50)])
def test_pictures_are_resized_as_the_model_has_them(described, tmp_path, shape):
    described(Tokenizer("builtin", 12))
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    file = str(tmp_path / "p.png")
    assert cv2.imwrite(file, picture)
    expected = resize(pixels_of(file), (64, 32)).astype(int)
    found = prepare.pixels(file)
    assert found.shape == (1, 64, 32, 3)
    assert abs(found[0].astype(int) - expected).max() <= 1  # cv2 rounds its weights


@pytest.fixture(scope="module")
def embedder():
    """A small model of random numbers on one device."""
    words, rng = Tokenizer("builtin", 10), np.random.default_rng(0)
    model = IRM(
        presets.preset(
            "tiny", width=16, image_size=(32, 16), image_depth=1, image_heads=2, text_depth=1, text_heads=2,
            max_length=10, template_heads=2, projection_width=8, editing_depth=1, vocab_size=words.vocab_size,
            num_identities=8, instruction_tokens=None, stem="patch", template_stem="patch",
        )
    )  # fmt: skip
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 10), jnp.int32), method=initialise))
    variables = {
        "params": jax.tree.map(lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes["params"]),
        "batch_stats": jax.tree.map(lambda x: np.ones(x.shape, np.float32), shapes["batch_stats"]),
    }
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    return Embedder.of(EmbeddingModel(model, variables, words, mesh, 4, (1,)), step=7)


@pytest.mark.nightly
@pytest.mark.usefixtures("quick_programs")
@pytest.mark.filterwarnings("ignore")  # of the packages that write and run the files
@pytest.mark.parametrize("format_", ["stablehlo", "onnx"])
def test_the_example_runs_without_this_project(embedder, tmp_path, capsys, format_):
    for package in functions.NEEDS[format_][0]:
        pytest.importorskip(package, reason=f"needs {functions.NEEDS[format_][1]}")
    made = tmp_path / "made"
    [one] = folder.export(embedder, made, [format_], ["embed_sentence"])
    assert one.difference < 1e-5
    assert f"embed_sentence.{format_}: " in capsys.readouterr().out
    assert f"`embed_sentence.{format_}` | `image` u8[B, 32, 16, 3], `instruction` i32[B, 10]" in (
        (made / "README.md").read_text()
    )
    example = made / f"example_{format_}.py"
    assert len([line for line in example.read_text().splitlines() if line.strip()]) <= 20
    rng, files = np.random.default_rng(0), [str(tmp_path / f"{number}.png") for number in (0, 1)]
    for file in files:
        assert cv2.imwrite(file, rng.integers(0, 256, (80, 32, 3), np.uint8))
    code = f"{WITHOUT}sys.argv[:] = sys.argv[2:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(made), str(example), "a red coat", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    rows = embedder.embed(files, "a red coat")
    found = np.array([row.strip("[ ]").split() for row in done.stdout.strip().splitlines()], float)
    np.testing.assert_allclose(found, rows @ rows.T, atol=2e-3)  # pixels differ by one where cv2 rounds its weights


def test_a_wrong_function_is_not_written(embedder, tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "serialized", lambda *_: b"wrong")
    monkeypatch.setattr(functions, "loaded", lambda *_: lambda *inputs: np.zeros((len(inputs[0]), 8), np.float32))
    with pytest.raises(ExportError, match=r"is no rounding. Nothing is written"):
        folder.export(embedder, tmp_path / "made", ["onnx"], ["search_sentence"])
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_at_once(tmp_path, monkeypatch):
    config = load("quickstart")
    monkeypatch.setitem(functions.NEEDS, "stablehlo", (("no_such_package",), pip_line("export")))
    with pytest.raises(ExportError, match=r"no_such_package.*pip install 'irm_jax\[export\]', or export onnx alone"):
        modes.export_functions(config, epath.Path(tmp_path))
    monkeypatch.setattr(functions, "require", lambda formats: None)
    (tmp_path / "export").mkdir()
    with pytest.raises(ConfigError, match="is there already: delete it, or name another"):
        modes.export_functions(config, epath.Path(tmp_path))
    with pytest.raises(ConfigError, match="exports go to a local folder"):
        modes.export_functions(config, epath.Path("gs://bucket/run"))


@pytest.mark.parametrize("shown", list(folder._EXAMPLES))
def test_an_example_of_every_function_is_a_program(shown):
    for format_ in functions.NEEDS:
        compile(folder._example(format_, shown), "example.py", "exec")
