"""Parts of a build on several machines: joined to the bytes of a build in one go, resumed after kills."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_shards

from data_pipelines import build, files
from data_pipelines.dataset import build_folder, parts
from data_pipelines.dataset.parts import Part
from data_pipelines.errors import DatasetError
from data_pipelines.files import LockedError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    toy_shards.build(out)
    return toy_shards.contents(out)


@pytest.mark.parametrize("count", [1, 3, 20])  # of eight shards
def test_the_last_part_joins_all_to_the_bytes_of_one_build(tmp_path: Path, whole: dict[str, bytes], count: int) -> None:
    order = [*range(2, count + 1), 1]
    for index in order:
        assert not (tmp_path / "toy/1.0.0").exists()
        found = toy_shards.build(tmp_path, f"{index}/{count}")
        assert (found is None) == (index != order[-1])
    assert toy_shards.contents(tmp_path) == whole
    assert sorted(path.name for path in (tmp_path / "toy").iterdir()) == [".lock", "1.0.0"]
    assert toy_shards.build(tmp_path, f"1/{count}", load=None) == found  # nothing is loaded again


def test_parts_of_machines_with_disks_of_their_own(tmp_path: Path, whole: dict[str, bytes]) -> None:
    for index in (1, 2):
        assert toy_shards.build(tmp_path / str(index), f"{index}/3") is None
        shutil.copytree(tmp_path / str(index), tmp_path / "all", dirs_exist_ok=True)
    toy_shards.build(tmp_path / "all")  # writes what no part has
    assert toy_shards.contents(tmp_path / "all") == whole


def test_a_killed_part_goes_on_and_a_killed_join_too(
    tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, toy_shards.__file__, str(tmp_path), "1", "26", "2/2"]  # in shard 3, the part's second
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "blocked\n"
    with pytest.raises(LockedError, match=r"is working in .*\.1\.0\.0\.parts/2-of-2"):
        toy_shards.build(tmp_path, "2/2")
    toy_shards.build(tmp_path, "1/2")  # another part is not kept waiting
    with pytest.raises(LockedError, match=r"\.1\.0\.0\.parts/2-of-2"):
        toy_shards.build(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    [kept] = (tmp_path / "toy/.1.0.0.parts/2-of-2/building/parts").glob("*.json")
    before = kept.stat()
    complete, moved = build_folder.complete, []

    def killed(*arguments: object) -> None:
        moved.append((tmp_path / f"toy/.1.0.0.building/parts/{kept.name}").stat())
        raise KeyboardInterrupt

    monkeypatch.setattr(build_folder, "complete", killed)
    with pytest.raises(KeyboardInterrupt):
        toy_shards.build(tmp_path, "2/2")
    assert [(now.st_ino, now.st_mtime_ns) for now in moved] == [(before.st_ino, before.st_mtime_ns)]
    monkeypatch.setattr(build_folder, "complete", complete)
    assert toy_shards.build(tmp_path, "1/2", load=None) is not None  # joins, and writes nothing again
    assert toy_shards.contents(tmp_path) == whole


def test_a_part_of_another_build_is_not_joined(tmp_path: Path, whole: dict[str, bytes]) -> None:
    toy_shards.build(tmp_path, "1/2", source={"kind": "other"})
    assert toy_shards.build(tmp_path, "2/2") is None
    assert toy_shards.build(tmp_path, "1/2") is not None  # starts over
    assert toy_shards.contents(tmp_path) == whole


def test_a_shard_that_was_damaged_on_its_way_is_written_again(tmp_path: Path, whole: dict[str, bytes]) -> None:
    toy_shards.build(tmp_path, "1/2")
    shard = next((tmp_path / "toy/.1.0.0.parts/1-of-2/building/data").iterdir())
    shard.write_bytes(shard.read_bytes()[:-1])
    toy_shards.build(tmp_path, "2/2")
    assert toy_shards.contents(tmp_path) == whole


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"])
def test_impossible_parts_are_refused(text: str) -> None:
    with pytest.raises(DatasetError, match="part"):
        Part.parse(text)


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert build.main(["--dataset", "procedural", "--out", str(tmp_path), "--part", "1/2"]) == 2
    assert "leave --part out" in capsys.readouterr().err
    lines = ["image,identity,camera,split"]
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(toy_shards.picture(number, ".png"))
        split = ("train", "query", "gallery")[number % 3]
        lines.append(f"{number}.png,{'t' if split == 'train' else 'q'}{number // 3},{number},{split}")
    (tmp_path / "crops.csv").write_text("\n".join(lines) + "\n")
    command = ["--dataset", "table", "--table", str(tmp_path / "crops.csv"), "--task", "trad", "--name", "mine"]
    command += ["--workers", "1"]
    assert build.main([*command, "--out", str(tmp_path / "one")]) == 0
    for part in ("2/2", "1/2"):
        capsys.readouterr()
        assert build.main([*command, "--out", str(tmp_path / "two"), "--part", part]) == 0
        said = capsys.readouterr().out
        assert (
            ("part 2/2 of mine is finished" in said)
            == (part == "2/2")
            == ("3 shards" not in said and "records in" not in said)
        )
    assert toy_shards.contents(tmp_path / "two") == toy_shards.contents(tmp_path / "one")
    with files.lock(tmp_path / "two/mine"):
        assert parts.Part(1, 2).missing(tmp_path / "two/mine/.1.0.0.building", {}) == [1, 2]
