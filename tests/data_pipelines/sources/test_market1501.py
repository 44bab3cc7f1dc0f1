"""Market-1501's layout on made-up trees: the right one, the wrong ones, and the command that builds it."""

from pathlib import Path

import pytest
import toy_shards

from data_pipelines import build, sources
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.sources import market1501

FILES = {
    "bounding_box_train": ["0002_c1s1_000451_03.jpg", "0002_c6s2_000010_01.jpg", "0007_c3s3_000001_00.jpg"],
    "query": ["0001_c1s1_001051_00.jpg", "1501_c2s1_000001_00.jpg"],
    "bounding_box_test": [
        "-1_c1s1_000401_03.jpg",
        "0000_c4s1_000001_01.jpg",
        "0000_c5s1_000001_01.jpg",
        "0001_c2s1_000301_01.jpg",
        "1501_c6s1_000001_00.jpg",
    ],
}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    root = tmp_path / "raw"
    for folder, names in FILES.items():
        (root / folder).mkdir(parents=True)
        for seed, name in enumerate(names):
            (root / folder / name).write_bytes(toy_shards.picture(seed))
    (root / "bounding_box_test" / "Thumbs.db").write_bytes(b"not a picture")
    (root / "gt_bbox").mkdir()
    return root


def run(raw: Path, out: Path, *options: str) -> int:
    return build.main(["--dataset", "market1501", "--raw", str(raw), "--out", str(out), "--workers", "1", *options])


def test_scan_counts_and_order(raw: Path) -> None:
    scan = market1501.scan(raw)
    assert scan.people == [
        "market1501/0000",
        "market1501/0001",
        "market1501/0002",
        "market1501/0007",
        "market1501/1501",
    ]
    assert scan.found == {
        "train": {"images": 3, "identities": 2, "cameras": 3},
        "query": {"images": 2, "identities": 2, "cameras": 2},
        "gallery": {"images": 4, "identities": 2, "cameras": 4, "distractors": 2},
    }
    assert scan.source["dropped_junk"] == {"train": 0, "query": 0, "gallery": 1}
    assert [item[0] for item in scan.splits["gallery"]] == [
        f"bounding_box_test/{name}" for name in FILES["bounding_box_test"][1:]
    ]


def test_expected_counts_are_the_published_ones() -> None:
    expected = sources.get_source("market1501").expected
    assert [expected[split]["images"] for split in ("train", "query", "gallery")] == [12_936, 3_368, 19_732 - 3_819]
    assert [expected[split]["identities"] for split in ("train", "query", "gallery")] == [751, 750, 750]


def test_build_command(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(raw, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert ["train", "images", "3", "12,936", "differs"] in [line.split() for line in printed.splitlines()]
    assert "gallery: 4 records in 1 shards" in printed
    dataset = open_dataset(tmp_path / "out", "market1501")
    assert (dataset.manifest.task, dataset.manifest.namespace) == ("trad", "market1501")
    gallery, people = dataset.index("gallery"), dataset.manifest.people
    assert [people[i] for i in gallery.identity] == [f"market1501/{pid}" for pid in ("0000", "0000", "0001", "1501")]
    assert gallery.camera.tolist() == [3, 4, 1, 5]  # from 0
    assert "market1501/0000" not in {people[i] for i in dataset.index("query").identity}
    record = dataset.reader("train")[1]
    assert record["file"] == "bounding_box_train/0002_c6s2_000010_01.jpg"
    assert record["image"] == (raw / record["file"]).read_bytes()


def test_strict_refuses_other_counts_before_writing(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raw, tmp_path / "out", "--strict") == 2
    assert "is not the published market1501: train: 3 images instead of 12,936" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_truncated_picture(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "bounding_box_train/0007_c3s3_000001_00.jpg"
    (raw / name).write_bytes((raw / name).read_bytes()[:-50])
    assert run(raw, tmp_path / "out") == 2
    assert (
        f"train: {name}: it is a JPEG that is damaged or cut short (Premature end of JPEG file"
        in capsys.readouterr().err
    )
    assert run(raw, tmp_path / "out", "--on_bad_image", "skip") == 0
    assert "train: 2 records in 1 shards, 0.1 MiB, 1 left out (do not decode)" in capsys.readouterr().out


def test_replaced_picture_is_not_mistaken_for_the_built_one(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(raw, tmp_path / "out") == 0
    name = "query/0001_c1s1_001051_00.jpg"
    (raw / name).write_bytes(toy_shards.picture(99, ".png"))
    assert run(raw, tmp_path / "out") == 2
    assert "holds another build (different: splits)" in capsys.readouterr().err
    assert run(raw, tmp_path / "out", "--overwrite") == 0
    assert open_dataset(tmp_path / "out", "market1501").reader("query")[0]["image"] == toy_shards.picture(99, ".png")


def test_wrong_trees(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist: unpack Market-1501"):
        market1501.scan(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="empty is empty: unpack Market-1501"):
        market1501.scan(tmp_path / "empty")
    with pytest.raises(
        DatasetError, match=r"lacks bounding_box_train/, query/, bounding_box_test/, but .*raw looks like"
    ):
        market1501.scan(tmp_path)
    with pytest.raises(
        DatasetError, match="give the folder that holds bounding_box_train/, query/, bounding_box_test/"
    ):
        market1501.scan(raw / "query")
    for path in (raw / "query").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"query holds no \.jpg file"):
        market1501.scan(raw)
    (raw / "query").rmdir()
    with pytest.raises(DatasetError, match="raw lacks query/: give the folder"):
        market1501.scan(raw)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("query/person.jpg", "the name does not begin with <pid>_c<camera>"),
        ("query/-2_c1s1_000001_00.jpg", "the name does not begin with <pid>_c<camera>"),
        ("query/0001_c7s1_000001_00.jpg", "camera 7, but Market-1501 has cameras 1 to 6"),
        ("query/0000_c1s1_000001_00.jpg", r"pid 0 \(distractor\) belongs in bounding_box_test/ only"),
    ],
)
def test_wrong_files(raw: Path, file: str, message: str) -> None:
    (raw / file).write_bytes(toy_shards.picture(0))
    with pytest.raises(DatasetError, match=message):
        market1501.scan(raw)


def test_raw_folder_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--dataset", "market1501", "--out", str(tmp_path)]) == 2
    assert "give their folder with --raw" in capsys.readouterr().err
    with pytest.raises(ValueError, match="unknown data set 'market'; those with a raw layout are: market1501"):
        sources.get_source("market")
