"""What every engine promises, by one suite: LanceDB in a folder, Milvus Lite where it is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_filters import CASES, COLUMNS, TABLE

from irm_jax.search import engines, filters, store
from irm_jax.search.crops import table_of
from irm_jax.search.gallery import rounded
from irm_jax.search.store import About, GalleryStore, SearchError

WIDTHS = {"neutral": 32, "caption": 16}


def about(**changes: str) -> About:
    kinds = {"path": "text", **COLUMNS}
    return About(**{"model": "run", "step": 1, "fingerprint": "f", "widths": WIDTHS, "columns": kinds} | changes)


def entries(count: int, first: int = 0) -> pa.Table:
    """Entries with the columns of the filters' table, in turn."""
    rng = np.random.default_rng(first)
    rows = TABLE.to_pylist()
    columns = [{"path": f"/p/{i}.jpg", **rows[i % len(rows)]} for i in range(first, first + count)]
    vectors = {}
    for space, width in WIDTHS.items():
        made = rng.standard_normal((count, width))
        vectors[store.vector_column(space)] = rounded(made / np.linalg.norm(made, axis=1, keepdims=True))
    ids = [f"{i:032x}" for i in range(first, first + count)]
    pictures = [f"picture {i}".encode() for i in range(first, first + count)]
    return table_of(about().schema(), ids, columns, pictures, vectors)


@pytest.fixture(
    params=["lance", pytest.param("milvus", marks=[pytest.mark.nightly, pytest.mark.filterwarnings("ignore")])]
)
def made(request: pytest.FixtureRequest, tmp_path: Path) -> GalleryStore:
    """An empty index; the engine is skipped if it is not installed."""
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")
        return engines.create_store(str(tmp_path / "index"), about())
    pytest.importorskip("milvus_lite", reason="needs pip install -e '.[milvus]'")
    return engines.create_store(f"milvus://{tmp_path}/lite.db/people", about())


def rows_of(found: GalleryStore, *columns: str, where: filters.Filter | None = None) -> list[dict]:
    batches = list(found.scan(list(columns), where))
    return sorted((row for batch in batches for row in batch.to_pylist()), key=lambda row: row[columns[0]])


def test_what_was_added_is_there(made: GalleryStore) -> None:
    assert made.count() == 0
    assert list(made.pictures(["00"])) == []
    before = made.version()
    made.add(entries(10))
    assert made.version() > before
    again = engines.open_store(made.uri)
    assert again.about == about()
    names = [name for name in about().schema().names if name != store.PICTURE]
    assert rows_of(again, *names) == entries(10).select(names).to_pylist()
    ids = [f"{i:032x}" for i in (3, 4, 99)]
    assert again.pictures(ids) == {ids[0]: b"picture 3", ids[1]: b"picture 4"}
    with pytest.raises(SearchError, match="already"):
        engines.create_store(made.uri, about())


def test_filters(made: GalleryStore) -> None:
    made.add(entries(4))
    for text, rows in CASES.items():
        found = rows_of(made, store.ID, where=filters.parse(text, COLUMNS))
        assert [int(row[store.ID], 16) for row in found] == rows, text


def test_search_is_exact_without_an_approximate_index(made: GalleryStore) -> None:
    made.add(entries(300))
    table = entries(300)
    for space in store.SPACES:
        vectors = np.asarray(table[store.vector_column(space)].to_pylist(), np.float32)
        query = (vectors[17] + 0.1).astype(np.float16).astype(np.float32)  # Lance rounds queries to float16
        for text in (None, "camera = 'gate'", "NOT (camera = 'gate' OR floor > 2)"):
            where = filters.parse(text, COLUMNS) if text else None
            passes = np.ones(300, bool) if where is None else filters.mask(where, table)
            best = np.argsort(np.where(passes, -(vectors @ query), np.inf), kind="stable")[:20]
            ids, scores = made.search(space, query, where, 20)
            assert [int(one, 16) for one in ids] == best.tolist()
            np.testing.assert_allclose(scores, (vectors @ query)[best], atol=1e-4)


def test_remove_by_filter_and_by_id(made: GalleryStore) -> None:
    made.add(entries(20))
    assert made.remove(filters.parse("camera = 'gate'", COLUMNS)) == 5
    assert made.remove([f"{1:032x}", f"{2:032x}"]) == 2
    assert made.remove(filters.parse("camera = 'gate'", COLUMNS)) == 0
    assert made.count() == len(store.ids_of(made)) == 13
    made.compact()
    assert [int(row[store.ID], 16) for row in rows_of(made, store.ID)][:4] == [3, 5, 6, 7]


def test_replace(made: GalleryStore) -> None:
    made.add(entries(20))
    other = about(fingerprint="g")
    made.replace(other, iter(entries(5, 40).to_batches()))
    again = engines.open_store(made.uri)
    assert again.about == made.about == other
    assert [int(row[store.ID], 16) for row in rows_of(again, store.ID)] == [40, 41, 42, 43, 44]


def test_a_store_says_what_it_holds_now(made: GalleryStore) -> None:
    """Another process may embed an index anew; what is written afterwards says so still."""
    made.add(entries(3))
    engines.open_store(made.uri).replace(about(fingerprint="g"), iter(entries(3, 40).to_batches()))
    made.version()
    assert made.about == about(fingerprint="g")
    other = engines.open_store(made.uri)
    other.replace(about(fingerprint="h"), iter(entries(3, 50).to_batches()))
    other.remove([f"{50:032x}"])
    made.compact()
    made.add(entries(1, 60))
    assert engines.open_store(made.uri).about == about(fingerprint="h")


def test_parts_become_visible_at_once_and_once(tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")
    made = engines.create_store(str(tmp_path / "index"), about())
    made.add(entries(3))
    for name, first in (("00000", 2), ("00001", 10)):
        made.part(name).add(entries(4, first))
    assert made.count() == 3
    assert {int(one, 16) for one in made.part("00000").ids()} == {2, 3, 4, 5, 10, 11, 12, 13}
    assert made.remove([f"{10:032x}"]) == 1  # what waits is removed as well
    version = made.version()
    made.commit_parts()
    assert made.version() == version + 1
    assert sorted(int(one, 16) for one in store.ids_of(made)) == [0, 1, 2, 3, 4, 5, 11, 12, 13]
    made.commit_parts()
    assert made.count() == 9
    assert not list(Path(made.uri).glob("part-*"))


def test_parts_of_another_model_are_no_entries(tmp_path: Path) -> None:
    """A build over several processes was killed, and the index then embedded anew."""
    pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")
    made = engines.create_store(str(tmp_path / "index"), about())
    made.part("00007").add(entries(4))
    made.replace(about(fingerprint="g"), iter(entries(3, 40).to_batches()))
    made.part("00000").add(entries(2, 60))
    assert {int(one, 16) for one in made.part("00000").ids()} == {60, 61}
    made.commit_parts()
    assert sorted(int(one, 16) for one in store.ids_of(made)) == [40, 41, 42, 60, 61]
    assert not list(Path(made.uri).glob("part-*"))


def test_an_index_whose_making_was_killed_is_none(tmp_path: Path) -> None:
    """No version had been written: building again makes the index."""
    pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")
    uri = str(tmp_path / "index")
    made = engines.create_store(uri, about())
    shutil.rmtree(Path(uri, "gallery.lance", "_versions"))
    assert not engines.exists(uri)
    with pytest.raises(SearchError, match="there is no search index"):
        engines.open_store(uri)
    made = engines.create_store(uri, about())
    made.add(entries(2))
    assert engines.open_store(uri).count() == 2


def test_a_part_that_was_half_removed(tmp_path: Path) -> None:
    """A process was killed while it dropped a part: files are missing, some or all of one kind."""
    pytest.importorskip("lancedb", reason="needs pip install -e '.[search]'")
    for kind in ("_versions", "data", "."):
        made = engines.create_store(str(tmp_path / kind / "index"), about())
        made.part("00000").add(entries(4))
        shutil.rmtree(Path(made.uri, "part-00000.lance", kind))
        if kind == ".":
            Path(made.uri, "part-00000.lance").mkdir(exist_ok=True)
        assert made.part("00001").ids() == set()
        made.part("00000").add(entries(2, 10))
        assert made.sizes()["entries of unfinished builds"] == 2
        made.commit_parts()
        assert made.count() == 2
        assert not list(Path(made.uri).glob("part-*"))
