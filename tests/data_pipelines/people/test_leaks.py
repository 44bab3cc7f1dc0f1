"""Every kind of overlap is found by each evidence, and none where there is none."""

from collections import Counter
from pathlib import Path

import pytest
import toy_shards

from data_pipelines.dataset import index, reader, schema
from data_pipelines.dataset.reader import Dataset, open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset
from data_pipelines.people import leaks, tested_people
from data_pipelines.people.leaks import find_leaks
from data_pipelines.people.names import known_camera, known_person

Row = tuple[str, str, int]  # person, file, picture


def record(row: Row) -> schema.Record:
    return schema.Record(image=toy_shards.picture(row[2]), file=row[1], person=row[0], camera=0)


def dataset(out: Path, name: str, **splits: list[Row]) -> Dataset:
    people = [row[0] for rows in splits.values() for row in rows]
    spec = DatasetSpec(name, "1.0.0", "trad", name, people, splits, record, {})
    write_dataset(out, spec, BuildOptions(workers=1))
    return open_dataset(out, name)


def test_clean_sets_and_shared_test_people(tmp_path: Path) -> None:
    """Test people and pictures may be in several test sets, and a person's pictures in query and gallery."""
    test = {"query": [("test/1", "q.jpg", 100)], "gallery": [("test/1", "g.jpg", 100), ("test/2", "h.jpg", 101)]}
    a = dataset(tmp_path, "a", train=[("a/1", "1.jpg", 1), ("a/1", "2.jpg", 1), ("a/2", "3.jpg", 3)], **test)
    b = dataset(tmp_path, "b", train=[("b/1", "1.jpg", 4)], **test)
    assert find_leaks([a, b]) == []
    assert leaks.summary([]) == "no person known to be in two places"
    assert leaks.main(["--data_dir", str(tmp_path), "--strict"]) == 0


def test_same_name(tmp_path: Path) -> None:
    a = dataset(tmp_path, "a", train=[("x/1", "1.jpg", 1), ("x/1", "2.jpg", 2)], query=[("x/2", "q.jpg", 3)])
    b = dataset(tmp_path, "b", train=[("x/1", "3.jpg", 4)], gallery=[("x/1", "4.jpg", 5)])
    found = {
        (leak.kind, leak.evidence, leak.dataset_a, leak.dataset_b, leak.images): leak for leak in find_leaks([a, b])
    }
    assert {key: (leak.linked, leak.harmful) for key, leak in found.items()} == {
        ("train_train", "name", "a", "b", (2, 1)): (True, False),
        ("train_test", "name", "a", "b", (2, 1)): (True, True),
        ("train_test", "name", "b", "b", (1, 1)): (True, True),
    }
    assert found["train_test", "name", "a", "b", (2, 1)].example == ("1.jpg", "4.jpg")


def test_origin_in_the_file_name(tmp_path: Path) -> None:
    """The overlap trap: unlinked names, other pictures, but the file says whose they are."""
    captions = dataset(
        tmp_path,
        "captions",
        train=[
            ("captions/7", "Trad/p0031_c2_05.jpg", 1),
            ("captions/8", "Trad/p0099_c2_05.jpg", 2),
            ("captions/9", "Market/0012_c1s1_000001_00.jpg", 3),
        ],
    )
    trad = dataset(
        tmp_path,
        "trad",
        train=[("procedural_trad/p0031", "x.jpg", 4), ("procedural_trad/p0032", "y.jpg", 5)],
        gallery=[("market1501/0012", "z.jpg", 6)],
    )
    wanted = {
        ("train_train", "captions/7", "procedural_trad/p0031", False, True),
        ("train_test", "captions/9", "market1501/0012", False, True),
    }
    for order in ([captions, trad], [trad, captions]):
        leaks = find_leaks(order)
        assert {leak.evidence for leak in leaks} == {"file"}
        pairs = {(x.kind, *sorted((x.person_a, x.person_b)), x.linked, x.harmful) for x in leaks}
        assert pairs == wanted


def test_two_sets_that_both_borrow_the_same_person(tmp_path: Path) -> None:
    a = dataset(tmp_path, "a", train=[("a/1", "Market/0012_c1s1_000001_00.jpg", 1)])
    b = dataset(tmp_path, "b", query=[("b/5", "Market/0012_c2s1_000001_00.jpg", 2)])
    (leak,) = find_leaks([a, b])
    assert (leak.kind, leak.evidence, leak.person_a, leak.person_b) == ("train_test", "file", "a/1", "b/5")


def test_same_picture(tmp_path: Path) -> None:
    a = dataset(
        tmp_path, "a", train=[("a/1", "1.jpg", 1), ("a/1", "2.jpg", 2), ("a/2", "3.jpg", 3), ("a/3", "4.jpg", 3)]
    )
    b = dataset(
        tmp_path,
        "b",
        train=[("b/1", "5.jpg", 8)],
        gallery=[("b/2", "6.jpg", 2), ("b/2", "7.jpg", 1), ("b/3", "8.jpg", 9)],
    )
    leaks = find_leaks([b, a])
    assert [(x.kind, x.evidence, x.dataset_a, x.person_a, x.dataset_b, x.person_b, x.images) for x in leaks] == [
        ("train_test", "picture", "a", "a/1", "b", "b/2", (2, 2)),
        ("train_train", "picture", "a", "a/2", "a", "a/3", (1, 1)),  # one picture, two labels, inside one training set
    ]
    assert all(leak.harmful for leak in leaks)


def test_strongest_evidence_is_kept(tmp_path: Path) -> None:
    a = dataset(tmp_path, "a", train=[("market1501/0012", "1.jpg", 1)])
    b = dataset(tmp_path, "b", train=[("b/1", "Market/0012_c1s1_000001_00.jpg", 1), ("market1501/0012", "2.jpg", 1)])
    evidence = {(x.dataset_a, x.dataset_b, x.person_a, x.person_b): x.evidence for x in find_leaks([a, b])}
    assert evidence == {
        ("a", "b", "market1501/0012", "market1501/0012"): "name",
        ("a", "b", "market1501/0012", "b/1"): "file",
        ("b", "b", "b/1", "market1501/0012"): "picture",
    }


def test_only_what_is_evidence_is_looked_at_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Millions of other rows cost the memory of their identities and checksums alone."""
    looked_at: list[int] = []
    group = leaks._group
    monkeypatch.setattr(leaks, "_group", lambda keys, count: looked_at.append(count) or group(keys, count))
    a = dataset(
        tmp_path, "a", query=[("x/9", "q.jpg", 40)],
        train=[("x/1", "1.jpg", 1), *((f"a/{n}", f"{n}.jpg", n) for n in range(2, 30)), ("a/7", "again.jpg", 8)],
    )  # fmt: skip
    b = dataset(tmp_path, "b", gallery=[("x/1", "4.jpg", 50), *((f"b/{n}", f"{n}.jpg", 50 + n) for n in range(1, 20))])
    found = [(leak.kind, leak.evidence, leak.person_a, leak.person_b) for leak in find_leaks([a, b])]
    assert found == [
        ("train_test", "name", "x/1", "x/1"),
        ("train_train", "picture", "a/7", "a/8"),
    ]
    assert max(looked_at) == 3


def test_an_index_is_read_once_for_the_search_before_a_training_and_that_of_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, hashed = Counter(), Counter()
    load, file_sha256 = index.load, reader.file_sha256
    monkeypatch.setattr(index, "load", lambda path, names=None: read.update([path.name]) or load(path, names))
    monkeypatch.setattr(reader, "file_sha256", lambda path: hashed.update([path.name]) or file_sha256(path))
    for name in "ab":
        dataset(tmp_path, name, train=[(f"{name}/1", "1.jpg", 1)], query=[(f"{name}/2", "2.jpg", 2)])
    a, b, again = (open_dataset(tmp_path, name) for name in "aba")
    assert len(a.index("train", ("camera",))) == 1
    tested_people.leaks([a], {"b": (b, ["query"])})
    found = find_leaks([again, b])
    assert {leak.evidence for leak in found} == {"picture"}
    # Once for the training, once for both searches, and for the file names of what was found (train alone).
    assert read == {"index-train.parquet": 1 + 2 + 2, "index-query.parquet": 2}
    assert hashed == {"index-train.parquet": 2, "index-query.parquet": 2}


@pytest.mark.parametrize(
    ("file", "person", "camera"),
    [
        ("Market/0012_c1s1_000001_00.jpg", "market1501/0012", 0),
        ("Market/0012_c6s1_000001_00.jpg", "market1501/0012", 5),
        ("Market/0012_c7s1_000001_00.jpg", "market1501/0012", None),  # there are six
        ("Trad/p0031_c2_05.jpg", "procedural_trad/p0031", None),
        ("CUHK01/0363002.png", "cuhk01/0363", 0),
        ("CUHK01/0363003.png", "cuhk01/0363", 1),
        ("CUHK01/0363005.png", "cuhk01/0363", None),  # there are four pictures
        ("CUHK03/672_2.jpg", "cuhk03/0672", None),
        ("CUHK03/x_2.jpg", None, None),
        ("test_query/p2647_s3378.jpg", None, None),
        ("Market/unknown.jpg", None, None),
        ("Marketing/0012_c1.jpg", None, None),
        ("x/Market/0012_c1s1_000001_00.jpg", None, None),
        ("0012_c1s1_000001_00.jpg", None, None),
    ],
)
def test_what_a_file_name_states(file: str, person: str | None, camera: int | None) -> None:
    assert (known_person(file), known_camera(file)) == (person, camera)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert leaks.main(["--data_dir", str(tmp_path / "nowhere")]) == 2
    assert "does not exist: build a data set into it" in capsys.readouterr().err
    assert leaks.main(["--data_dir", str(tmp_path)]) == 2
    assert "no built data set in" in capsys.readouterr().err
    dataset(tmp_path, "a", train=[("x/1", "1.jpg", 1), ("x/2", "2.jpg", 2)])
    dataset(tmp_path, "b", gallery=[("x/1", "3.jpg", 3), ("x/2", "4.jpg", 4)])
    assert leaks.main(["--data_dir", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "2 data sets: a, b" in printed
    assert "2       train_test  a / b      name      yes     yes      x/1 (1.jpg) = x/1 (3.jpg)" in printed
    assert leaks.main(["--data_dir", str(tmp_path), "--strict"]) == 1
    assert leaks.main(["--data_dir", str(tmp_path), "--datasets", "a", "--strict"]) == 0
