"""Records of the procedural benchmark, its shards, and its contact sheets."""

import dataclasses

import numpy as np
import pytest
import simplejpeg
from procedural_shots import ATTRIBUTES, BENCHMARK, shots_of

from data_pipelines import procedural, tasks
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.schema import UNKNOWN
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.procedural import contact_sheet, outfits, people
from data_pipelines.procedural.benchmark import Benchmark
from data_pipelines.procedural.drawing import render


def test_records_carry_the_fields_of_their_task():
    for task in tasks.TASK_NAMES:
        for split in ("train", "query", "gallery"):
            shot = shots_of(task)[split][3]
            record = BENCHMARK.load(shot)
            assert simplejpeg.decode_jpeg(record.image).shape == (64, 32, 3)
            assert record.attributes == shot.row.outfit == BENCHMARK.wardrobe.outfit(record.clothes)
            asks = task in ("ctcc", "li") or (task == "t2i" and split != "gallery")
            assert (record.instruction_clothes != UNKNOWN) == asks
            assert bool(record.instruction_attributes) == asks
            assert len(record.instruction_images) == (1 if task == "ctcc" else 0)
            paraphrases = {"li": 3, "t2i": 2}.get(task, 0) if split == "train" else int(asks and task != "ctcc")
            assert len(set(record.sentences)) == len(record.sentences) == paraphrases
            if asks and split != "query":
                assert record.instruction_clothes == record.clothes


def test_captions_tell_hair_build_and_every_slot():
    for shot in shots_of("t2i")["query"][:40]:
        (caption,) = BENCHMARK.load(shot).sentences
        person, text = shot.scene.person, caption.lower()
        assert people.HAIR_COLOURS[person.hair_colour] in text
        for slot, value in zip(outfits.BASE_SLOTS[:3], shot.row.outfit, strict=False):
            assert slot.values[value] in text
        words = {"short": ("short", "small"), "tall": ("tall",), "medium": ()}[people.stature(person)]
        assert not words or any(word in text for word in words)


def test_build_writes_all_six_data_sets(procedural_dir):
    options = BuildOptions(workers=1, progress=False)
    manifests = [open_dataset(procedural_dir, f"procedural_{task}").manifest for task in tasks.TASK_NAMES]
    dataset = open_dataset(procedural_dir, "procedural_li")
    benchmark = Benchmark(train_people=16, test_people=6, image_size=(64, 32))
    assert manifests[0].source == benchmark.source()
    index, reader = dataset.index("query"), dataset.reader("query")
    expected = [benchmark.load(shot) for shot in benchmark.shots("li")["query"]]
    assert [dataset.manifest.people[i] for i in index.identity] == [record.person for record in expected]
    assert index.instruction_attributes[:, :ATTRIBUTES].tolist() == [list(r.instruction_attributes) for r in expected]
    assert [reader[i]["image"] for i in range(len(reader))] == [record.image for record in expected]
    again = procedural.build(procedural_dir, benchmark, options)  # finished: returned as it is
    assert [m.name for m in again] == [f"procedural_{task}" for task in tasks.TASK_NAMES]
    assert again == manifests
    with pytest.raises(DatasetError, match="procedural_trad"):
        procedural.build(procedural_dir, dataclasses.replace(benchmark, seed=1), options)


def test_extra_slots():
    benchmark = Benchmark(image_size=(64, 32), extras=("shoes", "hat", "sleeves"), train_people=4, test_people=4)
    shots = benchmark.shots("li")
    record = benchmark.load(shots["train"][0])
    assert len(record.attributes) == 7
    assert record.sentences
    plain = dataclasses.replace(shots["train"][0].scene, outfit=(*record.attributes[:4], 0, 0, 0))
    dressed = dataclasses.replace(plain, outfit=(*record.attributes[:4], 2, 1, 1))
    assert (render.render(plain, (128, 64)) != render.render(dressed, (128, 64))).any(-1).mean() > 0.02


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_people": 1}, "at least 2"),
        ({"image_size": (8, 64)}, "16 or more"),
        ({"extras": ("shoes", "scarf")}, "scarf"),
    ],
)
def test_impossible_benchmarks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Benchmark(**options)


@pytest.mark.parametrize("task", tasks.TASK_NAMES)
def test_contact_sheets(task):
    for train in (False, True):
        sheet = contact_sheet.draw_sheet(BENCHMARK, task, 2, train)
        assert sheet.shape[0] == contact_sheet.HEADER + 2 * (64 + 4)
        assert np.ptp(sheet) > 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--people", "0"], "--people 0: draw 1 or more"),
        (["--size", "8", "8"], "16 or more"),
        (["--seed", "-1"], "seed -1 must be 0 or more"),
    ],
)
def test_contact_sheets_that_cannot_be_drawn(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["contact_sheet", "--out", str(tmp_path), *options])
    with pytest.raises(SystemExit) as caught:
        contact_sheet.main()
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
