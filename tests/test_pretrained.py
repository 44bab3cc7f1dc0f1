"""Models as folders: what a broken one is called, and a stand-in of the Hub."""

import dataclasses
import json
import shutil
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax import pretrained
from irm_jax.embedder import Embedder
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise
from irm_jax.pretrained import Pretrained, PretrainedError

WORDS = Tokenizer("builtin", 10)
CONFIG = presets.preset(
    "tiny", width=16, image_size=(32, 16), image_depth=1, image_heads=2, text_depth=1, text_heads=2, max_length=10,
    template_heads=2, projection_width=8, editing_depth=1, vocab_size=WORDS.vocab_size, num_identities=1,
    instruction_tokens=None, stem="patch", template_stem="patch",
)  # fmt: skip


@pytest.fixture(scope="module")
def shapes():
    model = IRM(CONFIG)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 10), jnp.int32), method=initialise))


@pytest.fixture(autouse=True)
def traced_once(shapes, monkeypatch):
    """Every reading traces the model for its shapes, which takes a second or two."""
    monkeypatch.setattr(pretrained.jax, "eval_shape", lambda function: shapes)


@pytest.fixture(scope="module")
def saved(shapes, tmp_path_factory):
    """The folder of a model of random numbers."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    pretrained.save(folder, Pretrained(CONFIG, variables, WORDS, step=7))
    return folder


def changed_config(**values):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        for key, value in values.items():
            config[key] = value
        (folder / "config.json").write_text(json.dumps(config))

    return change


def changed_arrays(change):
    def apply(folder: Path) -> None:
        arrays = load_file(folder / "model.safetensors")
        change(arrays)
        save_file(arrays, folder / "model.safetensors")

    return apply


def changed_model(**values):
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        config["model"].update(values)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def flipped(name, place):
    def change(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[place] ^= 1
        (folder / name).write_bytes(content)

    return change


def cut(name, keep):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def gone(name):
    return lambda folder: (folder / name).unlink()


HEAD = "params/head_person"
BROKEN = {
    "no configuration": (gone("config.json"), "holds no readable config.json .*: is it a model of irm_jax"),
    "half a configuration": (cut("config.json", 100), "holds no readable config.json"),
    "another model": (changed_config(model_type="bert"), "is not that of a model of irm_jax"),
    "a list": (lambda folder: (folder / "config.json").write_text("[1]"), "is not that of a model of irm_jax"),
    "a later format": (changed_config(format=2), "has format 2, this code reads 1: update irm_jax"),
    "no model": (changed_config(model=None), "is a NoneType, no table: update irm_jax"),
    "no number": (changed_config(max_pixels="many"), "is damaged .*: get it again"),
    "no weights": (gone("model.safetensors"), "is damaged .FileNotFoundError.*: get it again"),
    "half the weights": (cut("model.safetensors", 5000), "is damaged .SafetensorError.*: get it again"),
    "no weight file": (lambda f: (f / "model.safetensors").write_text("<html>"), "is damaged .SafetensorError"),
    "an array less": (changed_arrays(lambda x: x.pop(HEAD)), f"1 arrays are missing.*first is {HEAD}"),
    "an array more": (changed_arrays(lambda x: x.update(more=np.zeros(1))), "1 arrays .* the first is more"),
    "another shape": (changed_arrays(lambda x: x.update({HEAD: x[HEAD][:-1]})), f"of another shape.*{HEAD}"),
    "NaN": (changed_arrays(lambda x: x[HEAD].fill(np.nan)), f"not finite, the first is {HEAD}: get it again"),
    "a number of the weights": (changed_arrays(lambda x: np.negative(x[HEAD], out=x[HEAD])), "is not what was saved"),
    "a bit of the weights": (flipped("model.safetensors", -5), "is not what was saved: get it again"),
    "a stem to come": (changed_model(stem="fourier"), "stem = 'fourier'; it must be one of patch, conv"),
    "no heads for the width": (changed_model(image_heads=3), "width 16 is not divisible by image_heads = 3"),
    "another temperature": (changed_model(temperature=0.08), "model.safetensors or config.json is not what was saved"),
    "no vocabulary": (gone("vocab.txt"), "no vocabulary at .*vocab.txt"),
    "half the vocabulary": (cut("vocab.txt", 200), "vocab.txt is not the vocabulary of this model: get it again"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_one_message(saved, tmp_path, case):
    change, message = BROKEN[case]
    folder = shutil.copytree(saved, tmp_path / "copy")
    change(folder)
    with pytest.raises(PretrainedError, match=message) as raised:
        Embedder.from_pretrained(folder)
    assert str(folder) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("value", "dtype"), [(np.nan, np.float32), (np.inf, np.float32), (1e5, np.float16)])
def test_numbers_that_are_not_finite_are_not_saved(shapes, tmp_path, value, dtype):
    """A checkpoint that diverged, and a number beyond float16."""
    variables = jax.tree.map(lambda x: np.full(x.shape, 0.5, x.dtype), shapes)
    variables["params"]["text_encoder"]["word_embedding"][3, 2] = value
    with pytest.raises(PretrainedError, match=r"1 arrays are not finite as float.*params/text_encoder/word_embedding"):
        pretrained.save(tmp_path / "model", Pretrained(CONFIG, variables, WORDS), dtype)
    assert not (tmp_path / "model" / "config.json").exists()


def test_a_folder_that_holds_a_model_is_not_overwritten(saved):
    with pytest.raises(PretrainedError, match="holds a model already: delete it, or choose another folder"):
        Embedder.from_pretrained(saved).save_pretrained(saved)


def test_a_repository_of_the_hub(saved, tmp_path, monkeypatch):
    """A stand-in of huggingface_hub, whose snapshot is a folder, as the real one's is."""
    asked = []

    def snapshot_download(repo_id, *, revision=None, allow_patterns=None):
        asked.append((repo_id, revision, tuple(allow_patterns)))
        if repo_id != "owner/name":
            raise OSError("404 Client Error.\nRepository Not Found")
        return str(shutil.copytree(saved, tmp_path / "snapshot"))

    hub = types.ModuleType("huggingface_hub")
    hub.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    monkeypatch.chdir(tmp_path)
    embedder = Embedder.from_pretrained("owner/name", revision="v1")
    assert embedder.step == 7
    assert embedder.model.config == CONFIG
    [(_, revision, files)] = asked
    assert revision == "v1"
    assert set(files) == {path.name for path in saved.iterdir() if path.name != ".lock"}
    with pytest.raises(PretrainedError, match=r"no/such is no folder here and cannot be had from the Hub: 404 Client"):
        Embedder.from_pretrained("no/such")
    with pytest.raises(PretrainedError, match="there is no folder a/b/c, and it is no name owner/name"):
        Embedder.from_pretrained("a/b/c")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(PretrainedError, match=r"needs huggingface_hub: pip install 'irm_jax\[hub\]'"):
        Embedder.from_pretrained("owner/name")


def test_the_identity_heads_are_left_out(shapes, tmp_path):
    """They know the people of the training; the model of one identity that is left embeds as before."""
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    heads = {name: np.ones((16, 8), np.float32) for name in ("head_cls", "head_person", "head_guided")}
    many = {**variables, "params": {**variables["params"], **heads}}
    pretrained.save(tmp_path / "m", Pretrained(dataclasses.replace(CONFIG, num_identities=8), many, WORDS), np.float16)
    found = pretrained.load(tmp_path / "m")
    assert found.config == CONFIG
    for path, array in flatten_dict(found.variables, sep="/").items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, 0.0 if "head_" in path else 1.0)
