"""An index from pictures to hits: what is found, and what is refused; with a stand-in, nightly with a model."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from etils import epath
from search_pictures import picture

from benchmarks import search_speed
from irm_jax.errors import RetryError
from irm_jax.evaluation import folders
from irm_jax.evaluation.figures import read_results
from irm_jax.evaluation.ranking.rescore import Rescored
from irm_jax.evaluation.ranking.scores import Selection
from irm_jax.search import __main__ as command
from irm_jax.search import crops, engines, ingest, store
from irm_jax.search.crops import read_crops
from irm_jax.search.gallery import rounded
from irm_jax.search.index import Index, open_model
from irm_jax.search.rebuild import rebuild
from irm_jax.search.recall import recall
from irm_jax.search.store import SearchError
from irm_jax.search.thresholds import constant_tasks, read_thresholds


@pytest.fixture
def copy(index: Index, tmp_path: Path) -> Index:
    """The same index with the same model, to be changed."""
    shutil.copytree(index.store.uri, tmp_path / "copy")
    return Index(str(tmp_path / "copy"))


def test_a_picture_finds_itself_with_its_columns(index: Index, crops_dir: Path) -> None:
    answer = index.query(crops_dir / "07.png", top=30)
    assert len(answer) == answer.searched == 30
    assert answer[0].path == str(crops_dir / "07.png")
    assert answer[0].score == pytest.approx(1, abs=2e-3)
    assert answer[0].columns["camera"] == "hall"
    assert answer[0].columns["floor"] == 2
    assert str(answer[0].columns["time"]) == "2026-01-08 08:00:00"
    assert all(one.score >= two.score for one, two in itertools.pairwise(answer))


def test_scores_are_those_of_the_model(index: Index, crops_dir: Path) -> None:
    """Each stage against the model's own embeddings of the files."""
    model = index.model
    files = sorted(crops_dir.glob("*.png"))
    pixels = [crops.decode(file.read_bytes(), "") for file in files]
    neutral, caption = model.embed_pictures(pixels)
    asked = picture(99)

    def check(answer: object, expected: np.ndarray, atol: float) -> None:
        found = {hit.path: hit.score for hit in answer}  # type: ignore[attr-defined]
        np.testing.assert_allclose([found[str(file)] for file in files], expected, atol=atol)

    vector = model.embed_under([asked], "wearing a red shirt")[0]
    check(index.query(asked, "wearing a red shirt", top=30), neutral @ vector, 2e-3)
    under = model.embed_under(pixels, "wearing a red shirt")
    check(index.query(asked, "wearing a red shirt", top=30, rescore=200), under @ vector, 1e-4)
    clothes = model.embed_under([asked], picture(5))[0]
    check(index.query(asked, picture(5), top=30), neutral @ clothes, 2e-3)
    under = model.embed_under(pixels, picture(5))
    check(index.query(asked, picture(5), top=30, rescore=200), under @ clothes, 1e-4)
    constant = model.embed_under([asked], "ignore clothes")[0]
    under = model.embed_under(pixels, "ignore clothes")
    check(index.query(asked, "ignore clothes", top=30), under @ constant, 1e-4)
    check(index.query(sentence="a red shirt", top=30), caption @ model.embed_sentence("a red shirt"), 2e-3)


def test_the_second_stage_is_the_evaluators(index: Index) -> None:
    """The order of hits is that of the scoring `two_stage` over the stored vectors and pictures."""
    model, snapshot, words = index.model, index.snapshot, "wearing a red shirt"
    ids = [one.decode() for one in snapshot.ids]
    query = model.embed_under([picture(99)], words)
    stored = index.store.pictures(ids)

    def judge(_: np.ndarray, images: np.ndarray) -> np.ndarray:
        return model.embed_under([crops.decode(stored[ids[image]], "") for image in images], words) @ query[0]

    neutral = snapshot.vectors("neutral").host_vectors(np.arange(30))
    placed = Rescored(query, neutral, judge, 20).place(Selection.whole(1, 30))
    scores = placed.buffer.on_host(placed.block(np.array([0]), 1, None))[0]
    expected = [ids[image] for image in np.argsort(-scores, kind="stable")]
    assert [hit.id for hit in index.query(picture(99), words, top=30, rescore=20)] == expected


def test_the_timed_queries_have_the_stages_that_they_name(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded: list[int] = []
    embed = index.model.embed_under
    monkeypatch.setattr(index.model, "embed_under", lambda pictures, words: (
        embedded.append(len(pictures)), embed(pictures, words))[1])  # fmt: skip
    found = {}
    for name, given in search_speed.queries().items():
        embedded.clear()
        index.query(**given)
        found[name] = list(embedded)
    assert found == {"picture": [1], "sentence": [], "picture + sentence, one stage": [1],
                     "picture + sentence, 200 judged again": [1, 30]}  # fmt: skip


def test_a_sentence_is_judged_by_the_matching_head(index: Index) -> None:
    assert index.model.judges
    answer = index.query(sentence="a red shirt", top=30, rescore=20)
    judged = [hit.match for hit in answer]
    assert judged[:20] == sorted(judged[:20], reverse=True)
    assert judged[20:] == [None] * 10
    cosine = [hit.id for hit in index.query(sentence="a red shirt", top=30, rescore=0)]
    assert {hit.id for hit in answer[:20]} == set(cosine[:20])
    assert [hit.id for hit in answer[20:]] == cosine[20:]


def test_an_order_without_meaning_is_doubted(index: Index, crops_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no captions" not in " ".join(index.query(sentence="a red shirt").notes())
    monkeypatch.setattr(index.model, "sentence_doubt", "It was trained on no captions.")
    assert index.query(sentence="a red shirt").notes()[0] == "It was trained on no captions."
    assert "no captions" not in " ".join(index.query(crops_dir / "00.png", "a red shirt").notes())


def test_a_filter_is_applied_before_ranking(index: Index, crops_dir: Path) -> None:
    every = index.query(crops_dir / "00.png", top=30)
    gate = index.query(crops_dir / "00.png", where="camera = 'gate' AND floor > 1", top=4)
    wanted = [hit.id for hit in every if hit.columns["camera"] == "gate" and hit.columns["floor"] > 1]
    assert [hit.id for hit in gate] == wanted[:4]
    assert gate.searched == len(wanted)
    none = index.query(crops_dir / "00.png", where="floor = 77")
    assert list(none) == []
    assert "No entry passes the filter." in none.notes()
    assert index.query(crops_dir / "00.png", where="floor = 3 and camera = 'it''s'", top=1)[0].columns["floor"] == 3


def test_more_like_a_hit(index: Index, crops_dir: Path) -> None:
    first = index.query(crops_dir / "03.png", top=1)[0]
    similar = index.similar(first.id, top=29)
    assert first.id not in {hit.id for hit in similar}
    assert len(similar) == 29
    assert first.columns["camera"] == "gate"
    for where, others in (("camera = 'hall'", 10), ("camera = 'gate'", 9)):
        for top in (3, 20):
            similar = index.similar(first.id, where, top)
            assert (len(similar), similar.searched) == (min(top, others), others)
    with pytest.raises(SearchError, match="not in"):
        index.similar("f" * 32)


def test_thresholds_are_those_of_the_evaluation(index: Index, run: str, crops_dir: Path) -> None:
    measured = {row.task: row for row in read_results(run).open_set}
    answer = index.query(crops_dir / "00.png", "do not change clothes")
    assert answer.threshold is not None
    assert answer.threshold.value == measured["trad"].threshold["0.01"]
    assert [hit.above for hit in answer] == [hit.score > answer.threshold.value for hit in answer]
    answer = index.query(crops_dir / "00.png", "do not change clothes", top=30, rescore=20)
    assert [hit.above is None for hit in answer] == [False] * 20 + [True] * 10  # which have scores of the first stage
    # What no evaluation ranks in this way has none.
    for given in ({}, {"instruction": "wearing a hat"}, {"instruction": "wearing a hat", "rescore": 5},
                  {"instruction": "do not change clothes", "rescore": 0}):  # fmt: skip
        answer = index.query(crops_dir / "00.png", **given)
        assert {hit.above for hit in answer} == {None}
        assert any("No threshold is known" in note for note in answer.notes())


def test_a_constant_sentence_is_the_runs_own_however_it_is_spelled(
    index: Index, crops_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = crops_dir / "00.png"
    for plain, spelled in (("do not change clothes", "Do not change clothes."), (None, "Any image of this person!")):
        one, other = (index.query(picture, words, top=30) for words in (plain, spelled))
        assert (list(other), other.threshold) == (list(one), one.threshold)
    monkeypatch.setattr(index.model, "constant_tasks", constant_tasks({"trad": "change no clothes", "cc": None}))
    assert index.query(picture, "change no clothes").threshold is not None
    assert index.query(picture, "do not change clothes").threshold is None


def test_thresholds_are_those_of_the_models_step(earlier_run: Path, tmp_path: Path) -> None:
    """A run that was trained and evaluated, and then evaluated at an earlier step."""
    results = read_results(earlier_run)
    for step, threshold in ((8, 0.8), (2, 0.2)):
        figures = [dataclasses.replace(row, threshold={"0.01": threshold}) for row in results.open_set]
        run = {**results.rest["run"], "step": step}
        made = dataclasses.replace(results, open_set=tuple(figures), rest={**results.rest, "run": run})
        with folders.new(epath.Path(tmp_path), {}, step) as (folder, _):
            (folder / "results.json").write_text(json.dumps(made.to_json()))
    assert read_thresholds(str(tmp_path), 8)["trad"]["value"] == 0.8
    assert read_thresholds(str(tmp_path), 2)["trad"]["value"] == 0.2
    assert read_thresholds(str(tmp_path), 4) == {}
    assert read_thresholds(str(earlier_run), 8)  # an earlier version's, in the run's folder itself
    assert read_thresholds(str(earlier_run), 4) == {}


def test_unknown_words_are_named(index: Index) -> None:
    answer = index.query(sentence="a zzyzx red shirt")
    assert answer.unknown_words == ("zzyzx",)
    assert any("zzyzx" in note for note in answer.notes())
    with pytest.raises(SearchError, match="knows no word"):
        index.query(sentence="穿红衣服的女人")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, "give a picture, or a sentence"),
        ({"image": picture(0), "sentence": "a red shirt"}, "not both"),
        ({"sentence": "a red shirt", "instruction": "wearing a hat"}, "goes with a picture"),
        ({"sentence": "  "}, "is empty"),
        ({"image": b"hello"}, "no readable image"),
        ({"image": "missing.jpg"}, r"missing\.jpg is no readable image"),
        ({"image": picture(0)[:, :, 0]}, r"must be u8\[H, W, 3\]"),
        ({"image": picture(0), "top": 0}, "top = 0"),
        ({"image": picture(0), "where": "camera"}, "cannot be read at"),
    ],
)
def test_queries_that_are_none(index: Index, given: dict, reason: str) -> None:
    with pytest.raises(SearchError if "where" not in given else ValueError, match=reason):
        index.query(**given)


def test_a_picture_is_embedded_once(copy: Index, crops_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(crops_dir, tmp_path / "more")
    cv2.imwrite(str(tmp_path / "more" / "40.png"), picture(40))
    shutil.copy(tmp_path / "more" / "40.png", tmp_path / "more" / "41.png")
    (tmp_path / "more" / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    (tmp_path / "more" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    result = ingest.add(copy.store, copy.model, read_crops(tmp_path / "more"), quiet=True)
    assert (result.new, result.known, len(result.bad)) == (1, 31, 2)
    assert all(name in text for name, text in zip(("broken.jpg", "gone.jpg"), result.bad, strict=True))
    assert copy.store.count() == len(store.ids_of(copy.store)) == 31
    with pytest.raises(crops.BadImage, match="broken"):
        ingest.add(copy.store, copy.model, read_crops(tmp_path / "more"), skip_bad=False, quiet=True)
    copy.refresh()
    assert copy.query(tmp_path / "more" / "40.png", top=1)[0].path == str(tmp_path / "more" / "40.png")


def test_a_reader_sees_its_version_until_it_looks_again(copy: Index, crops_dir: Path, tmp_path: Path) -> None:
    assert copy.query(crops_dir / "00.png", top=40).searched == 30
    other = engines.open_store(copy.store.uri)
    cv2.imwrite(str(tmp_path / "new.png"), picture(50))
    ingest.add(other, copy.model, read_crops(tmp_path), quiet=True)
    assert copy.query(crops_dir / "00.png", top=40).searched == 30
    assert copy.refresh()
    assert not copy.refresh()
    assert copy.query(crops_dir / "00.png", top=40).searched == 31


def test_an_approximate_search_answers_from_one_version(copy: Index, crops_dir: Path, tmp_path: Path) -> None:
    """The engine ranks what it has now; columns are those of the hits, also of entries that are new."""
    reader = Index(copy.store.uri, approximate=True)
    assert reader.query(crops_dir / "00.png", top=40).searched == 30
    for number in range(60, 64):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(number))
    ingest.add(engines.open_store(copy.store.uri), copy.model, read_crops(tmp_path), quiet=True)
    paths = {row["_id"]: row["path"] for batch in copy.store.scan(["_id", "path"]) for row in batch.to_pylist()}
    answer = reader.query(crops_dir / "00.png", top=40)
    assert {hit.id: hit.path for hit in answer} == paths
    assert answer.searched == len(answer) == 34


def test_removed_bytes_are_gone_after_compaction(copy: Index, crops_dir: Path, capsys: pytest.CaptureFixture) -> None:
    """A reader whose version was compacted away answers from the newest one."""
    secret = (crops_dir / "07.png").read_bytes()
    assert copy.query(crops_dir / "07.png", top=1)[0].path.endswith("07.png")

    def on_disk() -> bool:
        return any(secret in path.read_bytes() for path in Path(copy.store.uri).rglob("*") if path.is_file())

    assert on_disk()
    assert command.main(["remove", copy.store.uri, "--where", "path LIKE '%/07.png'"]) == 0
    assert on_disk()  # an earlier version has them, so this test looks where they are
    assert command.main(["compact", copy.store.uri]) == 0
    assert "1 entries removed" in capsys.readouterr().out
    assert not on_disk()
    answer = copy.query(crops_dir / "07.png", "wearing a red shirt", top=30, rescore=200)
    assert copy.refresh()
    assert not any(hit.path.endswith("07.png") for hit in copy.query(crops_dir / "07.png", top=30))
    assert len(answer) == 30  # of the version in memory; its removed picture is not judged again


def test_two_writers(copy: Index, crops_dir: Path) -> None:
    with copy.store.lock(), pytest.raises(RetryError, match="another process"):
        ingest.add(engines.open_store(copy.store.uri), copy.model, read_crops(crops_dir), quiet=True)


def test_another_model_is_refused_and_rebuild_takes_it(copy: Index, run: str, crops_dir: Path) -> None:
    other = type(copy.model)(run, step=2)
    assert other.fingerprint != copy.about.fingerprint
    with pytest.raises(SearchError, match=rf"(?s){copy.about.fingerprint}.*{other.fingerprint}.*rebuild"):
        ingest.add(copy.store, other, read_crops(crops_dir), quiet=True)
    columns = [copy.query(crops_dir / "05.png", top=1)[0].columns]
    assert rebuild(copy.store, run, 2, quiet=True) == 30
    again = Index(copy.store.uri)
    assert again.about.fingerprint == other.fingerprint
    hit = again.query(crops_dir / "05.png", top=1)[0]
    assert [hit.columns] == columns
    assert hit.score == pytest.approx(1, abs=2e-3)


def test_a_run_that_has_moved_and_gone_on(
    copy: Index, run: str, crops_dir: Path, capsys: pytest.CaptureFixture
) -> None:
    """--model is where the run is now: the step of the index is opened, not the latest."""
    assert open_model(dataclasses.replace(copy.about, step=3), copy.store.uri, run).step == copy.about.step
    rebuild(copy.store, run, 2, quiet=True)
    assert Index(copy.store.uri, model=run).model.step == 2
    assert command.main(["add", copy.store.uri, str(crops_dir), "--model", run, "--quiet"]) == 0
    assert "30 in the index already" in capsys.readouterr().out


def test_a_reader_of_another_model_keeps_its_version(copy: Index, run: str, crops_dir: Path) -> None:
    """The index was embedded anew while it was read: what is in memory still answers, what is not is not mixed in."""
    image, before = crops_dir / "05.png", copy.about
    answer = copy.query(image, "do not change clothes", top=30)
    rebuild(engines.open_store(copy.store.uri), run, 2, quiet=True)
    new = engines.open_store(copy.store.uri).about
    both = rf"(?s){new.fingerprint}.*{before.fingerprint}"
    with pytest.raises(SearchError, match=both):
        copy.refresh()
    assert copy.about == before
    assert list(copy.query(image, "do not change clothes", top=30)) == list(answer)
    with pytest.raises(SearchError, match=both):
        copy.query(sentence="a red shirt")  # whose vectors are not in memory
    with pytest.raises(SearchError, match=both):
        ingest.add(copy.store, copy.model, read_crops(crops_dir), quiet=True)


def test_an_interrupted_rebuild_goes_on(copy: Index, run: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was embedded is not embedded again, and the vectors are those of a rebuild in one go."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ingest, "BATCH", 29)
    model = type(copy.model)
    embed = model.embed_pictures
    asked: list[int] = []

    def embed_pictures(self: Any, pictures: list[np.ndarray]) -> Any:
        asked.append(len(pictures))
        if len(asked) == 2:
            raise OSError("the disk is full")
        return embed(self, pictures)

    monkeypatch.setattr(model, "embed_pictures", embed_pictures)
    before = copy.about
    moved = next(iter(copy.store.scan(copy.about.schema().names))).slice(0, 1)
    copy.store.remove(moved.column(0).to_pylist())
    copy.store.part("00001").add(pa.Table.from_batches([moved]))  # of a build over several processes that was killed
    with pytest.raises(SearchError, match="the disk is full"):
        rebuild(copy.store, run, 2, quiet=True)
    assert engines.open_store(copy.store.uri).about == before
    assert rebuild(engines.open_store(copy.store.uri), run, 2, quiet=True) == 30
    assert asked == [29, 1, 1]
    rows = next(iter(engines.open_store(copy.store.uri).scan([store.ID, store.PICTURE, "_neutral", "_caption"])))
    pixels = [crops.decode(data, "") for data in rows.column(1).to_pylist()]
    for column, vectors in zip((2, 3), embed(model(run, 2), pixels), strict=True):
        np.testing.assert_array_equal(rows.column(column).to_pylist(), rounded(vectors))
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_commands(copy: Index, crops_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    uri = copy.store.uri
    page = tmp_path / "hits.html"
    words = ["query", uri, "--image", str(crops_dir / "04.png"), "--top", "3"]
    assert command.main([*words, "--html", str(page), "--where", "floor = 4"]) == 0
    assert "6 entries searched" in capsys.readouterr().out
    assert page.read_text().count("data:image/png;base64,") == 3
    assert command.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hits"][0]["path"] == str(crops_dir / "04.png")
    assert command.main(["info", uri]) == 0
    assert copy.about.fingerprint in capsys.readouterr().out
    assert command.main([*words, "--where", "camera = 'a"]) == 2
    assert command.main(["query", str(tmp_path / "none"), "--sentence", "x"]) == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert len([line for line in errors.splitlines() if line.startswith("error: ")]) == 2


@pytest.mark.parametrize("name", ["gallery.lance/_versions", "gallery.lance/data"])
def test_a_damaged_index_is_one_message(copy: Index, name: str, capsys: pytest.CaptureFixture) -> None:
    for path in Path(copy.store.uri, name).iterdir():
        path.write_bytes(path.read_bytes()[:40])
    assert command.main(["query", copy.store.uri, "--sentence", "a red shirt"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_recall_of_the_exact_search_is_one(index: Index) -> None:
    lines = list(recall(index, 5, 8, "floor > 1"))
    assert [line.split("recall@5 ")[1][:6] for line in lines[:2]] == ["1.0000", "1.0000"]
    assert "18 entries pass" in lines[1]
    assert lines[2].startswith("sentence ")
    with pytest.raises(SearchError, match="no entry passes"):
        list(recall(index, 5, 8, "floor = 99"))
    for top, queries in ((5, 0), (0, 8)):
        with pytest.raises(SearchError, match=f"--top {top} --queries {queries}"):
            list(recall(index, top, queries, None))


def test_nothing_of_an_index_is_believed() -> None:
    about = store.About("run", 1, "f", {"neutral": 4, "caption": 2}, dict(store.FIXED))
    assert store.About.from_json(about.to_json(), "x") == about
    for text in ("", "null", "[]", '{"model": 1}', '{"format": 9}', about.to_json().replace("text", "pickle"),
                 about.to_json().replace("4", '"4"'), "[" * 100_000):  # fmt: skip
        with pytest.raises(SearchError):
            store.About.from_json(text, "x")
    with pytest.raises(SearchError, match="format 2"):
        store.About.from_json(about.to_json().replace('"format": 1', '"format": 2'), "x")
