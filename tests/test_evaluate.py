"""What a checkpoint gives without training: `--mode evaluate`, the Embedder, `--mode embed` and `--mode explain`."""

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest

from data_pipelines.batches import training_data
from data_pipelines.images import decode
from data_pipelines.instructions.unknown_words import UnknownWordsError
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax import checkpoint, modes, run
from irm_jax.config import check
from irm_jax.embedder import Embedder, ImageError
from irm_jax.errors import UserError
from irm_jax.evaluation import compare, folders
from irm_jax.evaluation.embed import NotFiniteError
from irm_jax.evaluation.features import EmbedOptions, Variant, embed_split
from irm_jax.evaluation.figures import read_results
from irm_jax.evaluation.report import explain
from irm_jax.parallel import processes

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


@pytest.fixture
def config(make_run_config):
    return make_run_config()


def restored(config, workdir, step=None):
    """(step, embedding model) of a checkpoint, as `--mode evaluate` has it."""
    step, found = run.from_checkpoint(config, workdir, step)
    return step, found.saved_model(workdir, step)


@pytest.fixture(scope="module")
def embedder(trained_run):
    return Embedder(trained_run, batch_size=8)


@pytest.fixture(scope="module")
def model(make_run_config, trained_run, first_devices):
    """The same checkpoint as the evaluator uses it."""
    config = make_run_config()
    return restored(config, trained_run)[1]


@pytest.fixture(scope="module")
def people(make_run_config):
    """The ctcc queries: pictures as bytes, and their templates."""
    sets = {s.name: s for s in run.build(make_run_config()).test_sets}
    query = sets["procedural_ctcc"].query
    reader = query.dataset.reader("query", ("image",))
    pictures = [bytes(reader[i]["image"]) for i in range(len(query))]
    return query, pictures, [np.asarray(query.instruction(i)) for i in range(len(query))]


def test_evaluating_a_checkpoint_gives_the_figures_of_the_end_of_training(config, trained_run, tmp_path):
    workdir = tmp_path / "copy"
    shutil.copytree(trained_run, workdir)
    first = folders.newest(workdir)
    before = json.loads((first / "results.json").read_text())
    (workdir / "evaluations" / f"tmp-irm_jax-{2**22 + 1}-step-4").mkdir()  # left by one that was killed
    modes.evaluate(config, workdir)
    second = folders.newest(workdir)
    after = json.loads((second / "results.json").read_text())
    assert after["run"]["step"] == before["run"]["step"] == 4
    assert {row["test_set"] for row in after["figures"]} >= {"procedural_trad", "procedural_ctcc"}
    assert after["figures"] == before["figures"]
    page = (second / "report.html").read_text()
    assert len(page) > 10_000
    assert ".jpg</code>" in page  # queries are named with their files
    config.evaluation.checkpoint = "2"
    modes.evaluate(config, workdir)
    third = folders.newest(workdir)
    earlier = json.loads((third / "results.json").read_text())
    assert earlier["run"]["step"] == 2
    assert earlier["figures"] != before["figures"]
    # Nothing is overwritten, and nothing else is there.
    assert json.loads((first / "results.json").read_text()) == before
    kept = {path.name for path in (workdir / "evaluations").iterdir()}
    assert kept == {first.name, second.name, third.name, "latest"}
    assert all(row.difference == row.low == row.high == 0 for row in compare.compare_runs(first, second, samples=10))


def test_no_such_checkpoint(config, trained_run, tmp_path):
    assert restored(config, trained_run, "best")[0] == 4
    with pytest.raises(checkpoint.CheckpointError, match=r"no checkpoint of step 3 .*\[2, 4\]"):
        restored(config, trained_run, 3)
    with pytest.raises(checkpoint.CheckpointError, match=r"no complete checkpoint in .*name the right workdir"):
        Embedder(tmp_path)
    config.model.width = 32
    with pytest.raises(checkpoint.CheckpointError, match=r"another model: config.model.width: checkpoint 16, now 32"):
        restored(config, trained_run)


def test_another_vocabulary_is_refused(config, trained_run, tmp_path):
    entries = list(training_data.make_tokenizer(config, 16).entries)
    (tmp_path / "vocab.txt").write_text("\n".join(entries[:-2] + entries[:-3:-1]) + "\n")
    config.data.vocab = str(tmp_path)
    with pytest.raises(checkpoint.CheckpointError, match=r"vocabulary of config.data.vocab = .* is not the one"):
        restored(config, trained_run)


def test_evaluating_needs_no_training_data(config, trained_run, procedural_dir, tmp_path):
    for name in ("procedural_trad", "procedural_ctcc"):
        shutil.copytree(procedural_dir / name, tmp_path / "data" / name)
    config.data.dir, config.data.build_missing = str(tmp_path / "data"), False
    workdir = tmp_path / "run"
    shutil.copytree(trained_run / run.CHECKPOINTS, workdir / run.CHECKPOINTS)
    left = workdir / "per_query" / ".procedural_trad.npz.4711"  # of code before evaluations had folders
    left.parent.mkdir()
    left.write_bytes(b"half")
    modes.evaluate(config, workdir)
    folder = folders.newest(workdir)
    results = json.loads((folder / "results.json").read_text())
    assert results["leaks"] is None
    assert results["figures"] == [figure.to_json() for figure in read_results(trained_run).figures]
    assert not left.exists()
    assert (folder / "per_query" / "procedural_trad_same_outfit.npz").exists()


def test_the_embedder_gives_the_evaluators_embeddings(model, embedder, people):
    query, pictures, templates = people
    expected = embed_split(model, query, [Variant.own(query)], EmbedOptions(threads=1)).embedding["own"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert embedder.step == 4
    found = embedder(pictures, templates)
    assert found.shape == (len(query), 2 * 16)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_text_to_image_search_gives_the_evaluators_scores(make_micro_config, model, embedder):
    """Every caption of the test set against its whole gallery: the evaluator's best images and their cosines."""
    config = make_micro_config()
    with config.unlocked():
        for name in set(config.evaluation.sets) - {"procedural_t2i"}:
            del config.evaluation.sets[name]
    config.evaluation.update({"controls": False, "task_free": False, "open_set": False, "rescore_top": 0})
    searched = run.build(config)
    ranking = searched.evaluate(model).headline(searched.test_sets[0]).ranking
    query, gallery = searched.test_sets[0].query, searched.test_sets[0].gallery
    reader = gallery.dataset.reader("gallery", ("image",))
    sentences = embedder.project_sentences([query.instruction(i) for i in range(len(query))])
    images = embedder.project_images([bytes(reader[i]["image"]) for i in range(len(gallery))])
    assert (sentences.shape, images.shape) == ((len(query), 8), (len(gallery), 8))
    for rows in (sentences, images):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
    scores = sentences @ images.T
    np.testing.assert_allclose(np.take_along_axis(scores, ranking.top_ids, axis=1), ranking.top_scores, atol=1e-5)
    assert len(np.unique(ranking.top_ids[:, 0])) > 1
    assert embedder.project_sentences([]).shape == embedder.project_images([]).shape == (0, 8)


def test_the_embedder_takes_paths_bytes_and_arrays(trained_run, embedder, people, tmp_path):
    _, pictures, templates = people
    (tmp_path / "person.jpg").write_bytes(pictures[0])
    template = tmp_path / "template.png"
    assert cv2.imwrite(str(template), cv2.cvtColor(templates[0], cv2.COLOR_RGB2BGR))
    path = tmp_path / "person.jpg"
    images = [path, str(path), pictures[0], decode(pictures[0])]
    found = embedder(images, [template, template.read_bytes(), templates[0], templates[0]])
    np.testing.assert_allclose(found, np.tile(found[:1], (4, 1)), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    sentences = embedder(images[:2], ["wears a red shirt", NEUTRAL_SENTENCE])
    assert np.abs(sentences[0] - sentences[1]).max() > 1e-4
    np.testing.assert_allclose(embedder(images[:1]), sentences[1:], atol=1e-6)
    np.testing.assert_allclose(embedder(images[:2], "wears a red shirt")[1], sentences[0], atol=1e-6)
    assert embedder([]).shape == (0, 32)
    assert Embedder(trained_run / run.CHECKPOINTS, step=2).step == 2


def test_heads_load_as_they_are_saved(trained_run, make_run_config):
    config = make_run_config()
    config.model.identity_multiple = 4096
    _, embedder = restored(config, trained_run)
    saved = checkpoint.array_shapes(trained_run / run.CHECKPOINTS)["params/head_person"]
    assert embedder.variables["params"]["head_person"].shape == saved.shape
    assert saved.shape[1] < 4096


def test_an_instruction_picture_for_many_images_is_decoded_once(embedder, people, tmp_path, monkeypatch):
    _, pictures, templates = people
    path, decoded = tmp_path / "template.png", []
    assert cv2.imwrite(str(path), cv2.cvtColor(templates[0], cv2.COLOR_RGB2BGR))
    encoded, images = path.read_bytes(), [decode(p) for p in pictures[:6]]
    expected = embedder(images, [templates[0]] * 6)
    monkeypatch.setattr("data_pipelines.images.decode", lambda data, **_: decoded.append(1) or decode(data))
    found = embedder(images, [path, encoded, Path(str(path)), bytes(bytearray(encoded)), templates[0], path])
    assert len(decoded) == 2
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_more_instructions_than_are_encoded_at_a_time(embedder, people, monkeypatch):
    _, pictures, templates = people
    images = pictures[:12]
    asks = ["a red shirt", *templates[:5], "a blue shirt", *templates[5:10]]
    together = embedder(images, asks)
    monkeypatch.setattr("irm_jax.evaluation.embed.TABLE_ROWS", 3)
    np.testing.assert_allclose(embedder(images, asks), together, atol=1e-5)


def test_bad_pictures_are_named(embedder, people, tmp_path):
    _, pictures, _ = people
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(pictures[0][: len(pictures[0]) // 2])
    with pytest.raises(ImageError, match=r"cut\.jpg is no readable image"):
        embedder([cut])
    with pytest.raises(ImageError, match=r"missing\.jpg is no readable image .*No such file"):
        embedder([tmp_path / "missing.jpg"])
    with pytest.raises(ImageError, match="a picture given as 6 bytes is no readable image"):
        embedder([b"GIF89a"])
    with pytest.raises(ImageError, match=r"u8\[H, W, 3\] .*, not float32\[4, 4, 3\]"):
        embedder([np.zeros((4, 4, 3), np.float32)])
    with pytest.raises(ValueError, match="2 images but 1 instructions"):
        embedder(pictures[:2], ["a red shirt"])


def test_embeddings_of_a_diverged_model_are_refused(embedder, people, monkeypatch):
    _, pictures, _ = people
    diverged = jax.tree.map(lambda x: x * np.float32(np.nan), embedder.variables)
    monkeypatch.setattr(embedder._model, "variables", diverged)
    two, sentences = pictures[:2], ["a red shirt", "a blue shirt"]
    for embed, given in ((embedder.embed, two), (embedder.project_images, two), (embedder.embed_text, sentences)):
        with pytest.raises(NotFiniteError, match=r"2 of 2 embeddings hold NaN or infinity"):
            embed(given)


def test_unknown_words_are_named_and_a_sentence_of_them_alone_is_refused(embedder, people, caplog):
    """Two such sentences would have one embedding."""
    _, pictures, _ = people
    for call in (
        lambda: embedder(pictures[:2], ["a red shirt", "穿红衣服的女人"]),
        lambda: embedder(pictures[:1], "穿红衣服的女人"),
        lambda: embedder.project_sentences(["戴黑帽子的男士", "穿红衣服的女人"]),
        lambda: embedder(pictures[:1], ""),
    ):
        with pytest.raises(
            UnknownWordsError, match=r"the sentence '.*' has no word that the vocabulary 'builtin' knows"
        ):
            call()
    embedder(pictures[:1], "a red 衬衫")
    assert "'衬衫' in 'a red 衬衫'" in caplog.text


def test_unknown_words_are_looked_for_before_anything_is_embedded(config, trained_run, monkeypatch):
    step, found = run.from_checkpoint(config, trained_run, None)
    query = found.test_sets[0].query
    bad = dataclasses.replace(query, instructions=["戴黑帽子的男士"], instruction_index=np.zeros(len(query), np.int32))
    monkeypatch.setattr(found, "test_sets", [dataclasses.replace(found.test_sets[0], query=bad)])
    with pytest.raises(UnknownWordsError, match=r"test set procedural_\w+, split query: the sentence '戴黑帽子的男士'"):
        found.evaluate(found.saved_model(trained_run, step))
    with pytest.raises(UnknownWordsError):
        found.check_sentences()


def test_a_folder_is_embedded_into_one_file(config, trained_run, embedder, people, tmp_path, monkeypatch):
    _, pictures, _ = people
    workdir, folder = tmp_path / "run", tmp_path / "images"
    shutil.copytree(trained_run / run.CHECKPOINTS, workdir / run.CHECKPOINTS)
    (folder / "b").mkdir(parents=True)
    for name, picture in zip(("b/2.jpg", "1.JPG", "3.jpeg"), pictures, strict=False):
        (folder / name).write_bytes(picture)
    (folder / "notes.txt").write_text("not an image")
    config.embed.images, config.embed.instruction = str(folder), "wears a red shirt"
    modes.embed_folder(config, workdir)
    with np.load(workdir / "embeddings.npz") as file:
        assert file["files"].tolist() == ["1.JPG", "3.jpeg", "b/2.jpg"]
        assert str(file["instruction"]) == "wears a red shirt"
        expected = embedder([pictures[1], pictures[2], pictures[0]], "wears a red shirt")
        np.testing.assert_allclose(file["embeddings"], expected, atol=1e-5)
    monkeypatch.setattr(modes, "Embedder", lambda *_, **__: embedder)  # compiled already
    config.embed.text_to_image = True
    modes.embed_folder(config, workdir)
    with np.load(workdir / "embeddings.npz") as file:
        np.testing.assert_allclose(file["query"], embedder.project_sentences(["wears a red shirt"])[0], atol=1e-5)
        expected = embedder.project_images([pictures[1], pictures[2], pictures[0]])
        np.testing.assert_allclose(file["embeddings"], expected, atol=1e-5)
    (workdir / "embeddings.npz").unlink()
    with monkeypatch.context() as patch:  # several processes embed alike, the first one writes
        patch.setattr(processes, "is_main", lambda: False)
        modes.embed_folder(config, workdir)
    assert not (workdir / "embeddings.npz").exists()
    for wrong in ("", "template.png"):
        config.embed.instruction = wrong
        with pytest.raises(check.ConfigError, match=r"text_to_image searches by a sentence"):
            modes.embed_folder(config, workdir)
    config.embed.text_to_image, config.embed.instruction = False, ""
    (folder / "b" / "cut.jpg").write_bytes(pictures[0][:300])
    with pytest.raises(ImageError, match=r"b/cut\.jpg is no readable image"):
        modes.embed_folder(config, workdir)
    for empty in ("", str(tmp_path / "nothing")):
        config.embed.images = empty
        with pytest.raises(check.ConfigError, match=r"no images in config\.embed\.images"):
            modes.embed_folder(config, workdir)


@pytest.mark.nightly  # compiles attention
def test_a_query_is_explained(config, trained_run, model, people, tmp_path):
    query, pictures, templates = people
    workdir = tmp_path / "run"
    shutil.copytree(trained_run / run.CHECKPOINTS, workdir / run.CHECKPOINTS)
    (tmp_path / "q.jpg").write_bytes(pictures[0])
    cv2.imwrite(str(tmp_path / "ask.png"), templates[0])
    config.explain.query, config.explain.test_set = str(tmp_path / "q.jpg"), "procedural_ctcc"
    for ask in ("wears a red shirt", str(tmp_path / "ask.png")):
        config.explain.instruction = ask
        modes.explain(config, workdir)
        page = (workdir / "explain.html").read_text()
        assert "attention, person image" in page
        assert "The query's own file is left out" in page  # the test set knows its own query
        assert ("attention, instruction image" in page) == ask.endswith(".png")
    (test,) = [test for test in run.build(config).test_sets if test.name == "procedural_ctcc"]
    asked = explain.Question("q.jpg", decode(pictures[0]), "wears a red shirt", pictures[0])
    found = explain.score(model, test, asked, explain.Options())
    assert found.person == query.records.identity[0]
    # The same embeddings one by one, as the Embedder gives them.
    gallery = [decode(bytes(test.gallery.dataset.reader("gallery", ("image",))[i]["image"])) for i in range(3)]
    expected = model.embed(lambda i: gallery[i], [NEUTRAL_SENTENCE] * 3)
    np.testing.assert_allclose(found.gallery[:3], expected, atol=1e-5)
    with_it = model.embed(lambda i: asked.picture, ["wears a red shirt"])[0]
    np.testing.assert_allclose(found.scores[:3, 1], expected @ with_it, atol=1e-5)


def test_what_a_query_lacks_is_named(config, trained_run, people, tmp_path):
    path = tmp_path / "q.jpg"
    path.write_bytes(people[1][0])
    for query, instruction, test_set, words in (
        (
            "",
            "ignore clothes",
            "",
            r"config\.explain\.query is missing: --mode explain --config\.explain\.query=q\.jpg",
        ),
        (str(path), "", "", r"config\.explain\.instruction is missing"),
        (str(path), "ignore clothes", "mine", r"config\.explain\.test_set = 'mine'; the test sets are procedural_"),
        (str(tmp_path / "none.jpg"), "ignore clothes", "", r"none\.jpg is no readable image"),
        (str(path), "none.png", "", r"none\.png is no readable image"),
    ):
        config.explain.update(query=query, instruction=instruction, test_set=test_set)
        with pytest.raises(UserError, match=words):
            modes.explain(config, trained_run)
    config.explain.update(instruction="ignore clothes", map="umap")
    with pytest.raises(check.ConfigError, match=r"config\.explain\.map = 'umap'; it must be one of auto, tsne, pca"):
        check.check(config)
    assert not (trained_run / "explain.html").exists()
