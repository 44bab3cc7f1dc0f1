"""`data_pipelines.build --check`: what is there, what is odd, what can be trained, in one screen; nothing is built."""

from pathlib import Path

import pytest
import toy_shards
from official_trees import draw
from test_plan import write_table

from data_pipelines import build
from data_pipelines.own import plan


def screen(table: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    before = sorted(table.parent.rglob("*"))
    status = build.main(["--check", str(table), *options])
    assert sorted(table.parent.rglob("*")) == before
    return status, capsys.readouterr().out


def test_a_sound_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = write_table(tmp_path, "camera", "clothes", "caption", "modality", "shift")
    status, text = screen(Path(options.table), capsys)
    assert status == 0
    assert len(text.splitlines()) <= 24
    for line in (
        "My Crops.csv: 48 pictures of 8 people", "people     6 pictures each", "cameras    door 16, hall 16, street 16",
        "sizes      24 pixels high, 12 wide", "splits     no column split: people are divided",
        "clothes    2 outfits a person", "modality   24 visible, 24 infrared",
        "captions   48, 16 different; 0 pictures have none",
        "kept       shift (other columns)", "48 pictures are less than 32 pixels high",
        "can be trained and tested: trad, cc (clothes), vi (modality), t2i (caption); not ctcc: no column",
        "2 of 8 people are tested", "records in 3 data sets, about", "next: python -m irm_jax.main --config own",
    ):  # fmt: skip
        assert line in text
    assert "can be trained and tested: trad; not" not in text
    status, text = screen(Path(options.table), capsys, "--task", "cc")
    assert "can be trained and tested: cc (clothes)\n" in text


def test_what_is_odd_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path, [f"{n}.jpg" for n in range(8)])
    (tmp_path / "copy.jpg").write_bytes((tmp_path / "0.jpg").read_bytes())
    (tmp_path / "same.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    people = {"0": "a", "1": "a", "2": "b", "3": "b", "4": "c", "5": "c", "6": "d", "7": "e", "copy": "b", "same": "a"}
    rows = "".join(f"{name}.jpg,{person},0,a person walks|...\n" for name, person in people.items())
    (tmp_path / "t.csv").write_text("image,identity,camera,caption\n" + rows)
    _, text = screen(tmp_path / "t.csv", capsys)
    for line in (
        "2 people have one picture, and cannot be tested: d, e", "there is one camera only",
        "1 files are under two people: 0.jpg = copy.jpg",
        "1 files are copies of another of the same person: 1.jpg = same.jpg",
        "20 of 20 captions also describe somebody else: they tell little apart",
        "10 pictures have a caption without a word",
    ):  # fmt: skip
        assert line in text


def test_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Their own names in the next command; folders below a person's; pictures without a person."""
    people = tmp_path / "my people"
    draw(people, [f"p{n}/day {k % 2}/{k}.jpg" for n in range(6) for k in range(4)])
    status, text = screen(people, capsys, "--task", "trad", "--raw", str(people))
    assert status == 0
    note = "24 pictures lie in folders below their person's, whom the first folder names, as p0/day 0/0.jpg"
    assert text.count(note) == 1
    assert plan.make(plan.Options(str(people), str(people), ("trad",))).notes[0].startswith(note)
    assert "my_people has 2 queries only: one of them is 50% of rank-1" in text
    assert f"'--config.data.table={people}' '--config.data.own.pictures={people}' " in text
    assert text.endswith("'--config.data.own.tasks=('\"'\"'trad'\"'\"',)'\n")
    assert build.main(["--check", str(people / "p0" / "day 0")]) == 2
    assert "day 0 has no rows: 2 pictures lie in it directly, and who they show" in capsys.readouterr().err


def test_lists_name_the_people_wherever_the_pictures_lie(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path, [f"all/{n}.jpg" for n in range(12)])
    (tmp_path / "lists").mkdir()
    for name, numbers in {"train": range(6), "query": range(6, 8), "gallery": range(8, 12)}.items():
        lines = [f"../all/{n}.jpg {n % 2} {n % 3}\n" for n in numbers]
        (tmp_path / f"lists/list_{name}.txt").write_text("".join(lines))
    status, text = screen(tmp_path / "lists", capsys)
    assert status == 0
    assert "folders below" not in text
    assert "12 records in 1 data set, about" in text


def test_unreadable_pictures_are_named_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "cut.jpg").write_bytes(toy_shards.picture(1)[:-60])
    (tmp_path / "t.csv").write_text("image,identity\na.jpg,1\nb.jpg,1\ncut.jpg,2\nnone.jpg,2\n")
    status, text = screen(tmp_path / "t.csv", capsys)
    assert status == 2
    assert "unreadable: 2 of 4 pictures" in text
    assert "t.csv, line 4: cut.jpg: " in text
    assert "t.csv, line 5: none.jpg: it cannot be read (No such file or directory)" in text
    assert "config.data.own.on_bad_image=skip" in text


def test_nothing_can_be_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(tmp_path, ["a.jpg", "b.jpg"])
    (tmp_path / "t.csv").write_text("image,identity\na.jpg,1\nb.jpg,2\n")
    status, text = screen(tmp_path / "t.csv", capsys)
    assert status == 2
    assert "every person has one picture: is identity a number of the picture?" in text
    assert "nothing can be trained and tested: trad: every person has one picture" in text
    (tmp_path / "junk.csv").write_text("image,identity\na.jpg,-1\nb.jpg,-1\n")
    assert build.main(["--check", str(tmp_path / "junk.csv")]) == 2
    assert "junk.csv: no row names a person: all are of identity -1" in capsys.readouterr().err
    assert build.main(["--check", str(tmp_path / "none.csv")]) == 2
    assert "there is no table" in capsys.readouterr().err
    with pytest.raises(SystemExit) as caught:
        build.main([])
    assert caught.value.code == 2
    assert "--check TABLE" in capsys.readouterr().err
