"""Training streams of tiny shards: bit-equal whoever makes them, and every array holds what it is documented to."""

import dataclasses
import json
import pathlib
import types
import zlib

import numpy as np
import pytest

from data_pipelines import tasks
from data_pipelines.batches import make, show
from data_pipelines.batches.augment import NO_AUGMENT, Augment
from data_pipelines.batches.layout import Unit, plan_batch
from data_pipelines.batches.make import BatchOptions, instruction_key
from data_pipelines.batches.prefetch import ReadAhead, Stream
from data_pipelines.batches.training_data import TrainingData
from data_pipelines.dataset import schema
from data_pipelines.images import decode, resize
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.instructions.unknown_words import UnknownWordsError

TOKENIZER = Tokenizer(max_length=24)
# tiny_li twice, so that a unit's slots, rows and composed rows begin elsewhere than at 0.
UNITS = [
    Unit.of_task("tiny_li", "li", share_instruction=False),
    *[Unit.of_task(f"tiny_{task}", task) for task in ("trad", "cc", "ctcc", "vi", "t2i", "li")],
]
PLAN = plan_batch(UNITS, 104, 4, tokenizer=TOKENIZER)
OPTIONS = {"seed": 3, "image_size": (48, 24), "instruction_image_size": (16, 16)}


def training_data(datasets, plan=PLAN, **changes):
    return TrainingData.of(plan, datasets, TOKENIZER, BatchOptions(**{**OPTIONS, **changes}))


def batches(datasets, steps=4, start=0, *, blocks=range(4), workers=0, threads=0, **changes):
    data = training_data(datasets, **changes)
    with data.stream(start, steps, blocks, ReadAhead(workers=workers, threads=threads)) as made:
        for step, batch in made:
            # Copies: what workers hand out is shared memory.
            yield step, {g: {k: np.array(a) for k, a in fields.items()} for g, fields in batch.items()}


def assert_equal(found, expected, select=lambda a: a):
    found, expected = list(found), list(expected)
    assert [step for step, _ in found] == [step for step, _ in expected]
    for (_, one), (_, two) in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        for group in one:
            assert one[group].keys() == two[group].keys()
            for name, array in one[group].items():
                assert array.dtype == two[group][name].dtype, (group, name)
                np.testing.assert_array_equal(array, select(two[group][name]), err_msg=f"{group} {name}")


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data[1]


@pytest.fixture(scope="module")
def reference(data):
    """Steps 0 to 5, made one after another on demand."""
    return list(batches(data, 6))


def test_threads_change_nothing(data, reference):
    assert_equal(batches(data, 6, threads=3), reference)


class FailsAt:
    """Makes what `make` does, but raises an error for the element `last`."""

    def __init__(self, make, last):
        self.make, self.last = make, last

    def __call__(self, step):
        if step == self.last:
            raise ValueError("this step cannot be made")
        return self.make(step)


@pytest.mark.parametrize(
    "threads", [2, pytest.param(0, marks=pytest.mark.nightly)], ids=["two threads each", "no threads"]
)
def test_worker_processes_change_nothing_and_report_errors_after_what_came_before(data, reference, threads):
    own = training_data(data)
    maker = make.BatchMaker(PLAN, own.sources, own.options, TOKENIZER, range(4))
    with Stream(FailsAt(maker, 6), 0, 9, ReadAhead(workers=2, threads=threads)) as made:
        found = [next(made) for _ in range(6)]
        assert_equal(found, reference)
        with pytest.raises(ValueError, match="this step cannot be made"):
            next(made)


def test_the_stream_starts_at_any_step(data, reference):
    assert_equal(batches(data, 2, start=4), reference[4:])
    assert_equal(batches(data, 1, start=2, threads=2), reference[2:3])


@pytest.mark.parametrize("hosts", [[[0, 1], [2, 3]], [[3], [0, 2], [1]]])
def test_each_host_makes_its_blocks_of_the_same_batch(data, reference, hosts):
    for blocks in hosts:
        assert_equal(batches(data, 2, blocks=blocks), reference[:2], lambda array, blocks=blocks: array[blocks])


def test_accumulated_batches_are_consecutive_plan_steps(data, reference):
    ((step, joined),) = batches(data, 1, start=1, accumulate=2)
    assert step == 1
    for part in range(2):
        own = [(0, {g: {k: a[part] for k, a in fields.items()} for g, fields in joined.items()})]
        assert_equal(own, [(0, reference[2 + part][1])])


def test_a_second_view_changes_nothing_else_and_shows_the_same_images_and_captions(data, reference):
    found = list(batches(data, 2, second_view=True))
    for (_, batch), (_, expected) in zip(found, reference, strict=False):
        for group, fields in expected.items():
            for name, values in fields.items():
                np.testing.assert_array_equal(batch[group][name], values)
            views = batch[group]["image"], batch[group]["key_image"]
            assert np.all((views[0] != views[1]).any(axis=(2, 3, 4)))  # every row under another augmentation
    caption = found[0][1]["caption"]
    reader = data["tiny_t2i"].reader("train")
    by_record = [TOKENIZER.encode(reader[i]["sentences"]).tolist() for i in range(len(reader))]
    pairs = zip(*(caption[name].reshape(-1, 24).tolist() for name in ("tokens", "key_tokens")), strict=True)
    for own, other in pairs:
        assert own != other
        assert any(own in sentences and other in sentences for sentences in by_record)
    ((_, plain),) = batches(data, 1, second_view=True, augment=NO_AUGMENT)
    for group in plain.values():
        np.testing.assert_array_equal(group["key_image"], group["image"])


def test_images_grow_by_the_step_alone(data, reference):
    """At every size the rows and instructions are the same, and so are the images at full size."""
    growth = ((0, (24, 12)), (2, (36, 24)), (4, (48, 24)))
    found = list(batches(data, 6, growth=growth))
    assert_equal(found[4:], reference[4:])
    for step, batch in found:
        size = growth[step // 2][1]
        for group, fields in batch.items():
            assert fields["image"].shape == (*reference[step][1][group]["image"].shape[:2], *size, 3)
            for name in fields.keys() - {"image"}:
                np.testing.assert_array_equal(fields[name], reference[step][1][group][name])
    assert_equal(batches(data, 4, start=1, growth=growth, workers=2), found[1:5])  # resumed, by others
    ((_, joined),) = batches(data, 1, start=1, accumulate=2, growth=growth)
    assert joined["text"]["image"].shape[3:5] == (24, 12)  # of the second step, not of its third and fourth batch
    plain, grown = (training_data(data, **own).stream_fingerprint() for own in ({}, {"growth": growth}))
    assert {**plain, "growth": [[first, list(size)] for first, size in growth]} == grown


def test_a_small_image_is_the_picture_resized(data):
    ((_, full),) = batches(data, 1, augment=NO_AUGMENT)
    ((_, small),) = batches(data, 1, augment=NO_AUGMENT, growth=((0, (24, 12)), (1, (48, 24))))
    images = full["text"]["image"].reshape(-1, 24, 2, 12, 2, 3).mean((2, 4))
    assert np.abs(small["text"]["image"].reshape(images.shape) - images).mean() < 3


def test_another_seed_is_another_stream(data, reference):
    ((_, other),) = batches(data, 1, seed=4)
    assert (other["text"]["identity"] != reference[0][1]["text"]["identity"]).any()


def test_shapes_and_dtypes_are_those_of_the_specification(reference):
    spec = make.batch_spec(PLAN, OPTIONS["image_size"], OPTIONS["instruction_image_size"])
    for _, batch in reference:
        found = {g: {k: (a.shape, a.dtype.type) for k, a in fields.items()} for g, fields in batch.items()}
        assert found == spec
    assert spec["text"]["image"] == ((4, 20, 48, 24, 3), np.uint8)
    assert spec["text"]["table"] == ((4, 6, 24), np.int32)
    assert spec["visual"]["table"] == ((4, 2, 16, 16, 3), np.uint8)
    assert spec["caption"]["tokens"] == ((4, 2, 24), np.int32)
    assert sum(spec[g]["valid"][0][1] for g in spec) * 4 == 104


def test_a_group_without_its_own_instructions_has_an_empty_table(data):
    plan = plan_batch([Unit.of_task("tiny_trad", "trad")], 16, 2, tokenizer=TOKENIZER)
    ((_, batch),) = training_data(data, plan).stream(0, 1, range(2), ReadAhead(threads=0))
    assert list(batch) == ["text"]
    assert batch["text"]["table"].shape == (2, 0, 24)
    assert batch["text"]["composed_attributes"].shape == (2, 0, 8)


def test_rows_hold_the_records_they_claim(data):
    """Without augmentation every row's image, labels and instruction are found again in the data set."""
    space = training_data(data).space
    ((_, batch),) = batches(data, 1, augment=NO_AUGMENT)
    for layout in PLAN.units:
        dataset = data[layout.unit.dataset]
        index, reader, group = dataset.index("train"), dataset.reader("train"), batch[layout.kind]
        rows = np.s_[:, layout.row : layout.row + layout.rows]
        assert (group["dataset"][rows] == PLAN.datasets.index(dataset.name)).all()
        assert (group["task"][rows] == tasks.task(layout.unit.task).id).all()
        assert group["valid"][rows].all()
        columns = [space.of(dataset.name)[index.identity], index.camera, index.clothes, index.modality]
        for block, row in np.ndindex(4, layout.rows):
            at = (block, layout.row + row)
            labels = [group[name][at] for name in ("identity", "camera", "clothes", "modality")]
            (record,) = np.flatnonzero(np.all([c == v for c, v in zip(columns, labels, strict=True)], 0))
            image = resize(decode(reader[record]["image"]), OPTIONS["image_size"])
            np.testing.assert_array_equal(group["image"][at], image)
            if layout.kind == "caption":
                captions = TOKENIZER.encode(list(reader[record]["sentences"]))
                assert (captions == group["tokens"][at]).all(1).any()
            else:
                _check_instruction(group, at, layout, reader[record])


def _check_instruction(group, at, layout, record) -> None:
    instruction, key = group["instruction"][at], group["instruction_key"][at]
    attributes = record["attributes"] or (record["clothes"],)
    np.testing.assert_array_equal(group["attributes"][at], schema.pad_attributes(tuple(attributes)))
    if instruction < 0:
        assert (key == instruction).all()
        assert instruction == -1 - PLAN.neutral or instruction == -1 - layout.constant
        return
    assert layout.entry <= instruction < layout.entry + layout.entries
    assert (key >= 0).all()
    entry = group["table"][at[0], instruction]
    if layout.kind == "visual":
        np.testing.assert_array_equal(entry, decode(record["instruction_images"][0]))
    else:
        # All records of an outfit have the same sentences here, so the shared one is among the row's own.
        assert (TOKENIZER.encode(list(record["sentences"])) == entry).all(1).any()


def test_equal_keys_are_equal_instructions(reference):
    for group in ("text", "visual"):
        contents = {}
        for _, batch in reference:
            fields = batch[group]
            for at in np.ndindex(fields["instruction"].shape):
                slot, key = int(fields["instruction"][at]), tuple(fields["instruction_key"][at].tolist())
                content = slot if slot < 0 else fields["table"][at[0], slot].tobytes()
                assert contents.setdefault(key, content) == content
        assert len(set(contents.values())) == len(contents)
        assert len(contents) >= 4


def test_composed_rows_ask_for_another_outfit_of_the_same_person(data, reference):
    for layout in (u for u in PLAN.units if u.unit.composed):
        named = 1 if layout.unit.task == "li" else 2
        for _, batch in reference:
            fields = batch[layout.kind]
            assert fields["composed_valid"].all()  # three outfits each, two in the batch
            for block, number in np.ndindex(4, layout.rows):
                place, row = layout.composed_row + number, layout.row + number
                assert fields["composed_row"][block, place] == row
                same = fields["identity"][block] == fields["identity"][block, row]
                same &= np.isin(np.arange(len(same)), range(layout.row, layout.row + layout.rows))
                (other,) = set(fields["clothes"][block, same].tolist()) - {int(fields["clothes"][block, row])}
                wanted = (other, other + 1)[:named]
                np.testing.assert_array_equal(
                    fields["composed_attributes"][block, place], schema.pad_attributes(wanted)
                )
                slot = fields["composed_instruction"][block, place]
                assert layout.entry <= slot < layout.entry + layout.entries
                if layout.unit.task == "li":
                    assert f"outfit number {other} said" in TOKENIZER.decode(fields["table"][block, slot])


def test_the_same_person_has_one_identity_in_all_data_sets(data):
    space = training_data(data).space
    shared = {int(space.of(name)[data[name].manifest.people.index("shared/p0")]) for name in data}
    assert len(shared) == 1
    seen = {}
    for _, batch in batches(data, 12, augment=NO_AUGMENT):
        for fields in batch.values():
            for identity, dataset in zip(fields["identity"].ravel(), fields["dataset"].ravel(), strict=True):
                seen.setdefault(int(identity), set()).add(int(dataset))
    assert seen[shared.pop()] == set(range(6))
    assert sum(len(sets) > 1 for sets in seen.values()) == 1


def test_augmentation_options_may_differ_by_data_set(data, reference):
    options = {unit.dataset: Augment() for unit in UNITS}
    options["tiny_li"] = NO_AUGMENT
    ((_, mixed),) = batches(data, 1, augment=options)
    plain = next(batches(data, 1, augment=NO_AUGMENT))[1]
    li = mixed["text"]["dataset"] == PLAN.datasets.index("tiny_li")
    np.testing.assert_array_equal(mixed["text"]["image"][li], plain["text"]["image"][li])
    np.testing.assert_array_equal(mixed["text"]["image"][~li], reference[0][1]["text"]["image"][~li])
    assert (mixed["text"]["image"][~li] != plain["text"]["image"][~li]).any()


def test_labels_fall_back_to_clothes_and_to_own_attributes(make_index):
    one = make.Labels.of(make_index(np.arange(3), clothes=np.array([4, 5, 70000])), np.arange(3, dtype=np.int32))
    np.testing.assert_array_equal(one.attributes[:, 0], [4, 5, 70000])
    np.testing.assert_array_equal(one.wanted, one.attributes)
    assert (one.attributes[:, 1:] == -1).all()
    given = make_index(np.arange(2), clothes=np.array([4, 5]), instruction_clothes=np.array([9, -1]))
    np.testing.assert_array_equal(make.Labels.of(given, np.arange(2)).wanted[:, 0], [9, 5])
    worn = np.full((2, 8), -1, np.int16)
    worn[:, 0] = (1, 2)
    two = make.Labels.of(make_index(np.arange(2), attributes=worn), np.arange(2))
    np.testing.assert_array_equal(two.wanted, worn)


class Altered:
    """A data set whose records pass through change(record number, fields) -> fields."""

    def __init__(self, dataset, change) -> None:
        self.manifest, self.max_pixels = dataset.manifest, dataset.max_pixels
        self._dataset, self._change = dataset, change

    def index(self, split, columns):
        return self._dataset.index(split, columns)

    def reader(self, split, fields):
        return AlteredReader(self._dataset.reader(split, fields), self._change)


class AlteredReader:
    def __init__(self, reader, change) -> None:
        self._reader, self._change = reader, change

    def __getitem__(self, i):
        return self._change(i, self._reader[i])


def test_every_row_of_every_step_is_augmented_differently(data):
    one = data["tiny_cc"].reader("train")[0]["image"]
    alike = {name: Altered(dataset, lambda i, fields: {**fields, "image": one}) for name, dataset in data.items()}
    images = [
        image.tobytes()
        for _, batch in batches(alike, 3)
        for fields in batch.values()
        for image in fields["image"].reshape(-1, 48, 24, 3)
    ]
    assert len(images) == 3 * 104
    assert len(set(images)) == len(images)


def test_a_truncated_jpeg_is_named(data):
    def cut(i, fields):
        return {**fields, "image": fields["image"][:-60]} if i == 40 else fields

    spoiled = {**data, "tiny_vi": Altered(data["tiny_vi"], cut)}
    file = data["tiny_vi"].index("train").file[40]
    with pytest.raises(ValueError, match=f"data set tiny_vi, split train, record 40, file {file}: the image does not"):
        list(batches(spoiled, 60, threads=1))


def test_bad_requests_are_refused(data):
    for changes, message in (
        ({"blocks": [0, 4]}, r"blocks \[0, 4\] must be some of the plan's 4"),
        ({"blocks": []}, "must be some of"),
        ({"accumulate": 0}, "accumulate = 0"),
        ({"workers": -1}, "workers = -1"),
    ):
        with pytest.raises(ValueError, match=message):
            list(batches(data, 1, **changes))
    with pytest.raises(ValueError, match=r"draws from \['tiny_li'\], but only"):
        list(batches({k: v for k, v in data.items() if k != "tiny_li"}, 1))


def test_fingerprint_is_json_and_names_what_changes_the_stream(data):
    def fingerprint(**changes):
        return training_data(data, **changes).fingerprint()

    base = fingerprint()
    assert json.loads(json.dumps(base)) == base
    assert base == fingerprint(augment={unit.dataset: Augment() for unit in UNITS})
    for changes in ({"seed": 4}, {"accumulate": 2}, {"image_size": (48, 25)}, {"augment": Augment(pad=9)}):
        assert fingerprint(**changes) != base
    other = types.SimpleNamespace(manifest=types.SimpleNamespace(content_hash="x"))
    changed = dataclasses.replace(training_data(data), datasets={**data, "tiny_li": other})
    assert changed.fingerprint()["data"] != base["data"]


def test_the_train_index_is_read_once_without_file_names(data):
    read = []

    class Counted(Altered):
        def index(self, split, columns):
            read.append((self.manifest.name, split, "file" in columns))
            return super().index(split, columns)

    counted = {name: Counted(dataset, lambda i, fields: fields) for name, dataset in data.items()}
    list(batches(counted, 2))
    assert sorted(read) == [(name, "train", False) for name in sorted(data)]


def test_a_batch_can_be_drawn(reference, tmp_path: pathlib.Path):
    picture = show.draw_batch(reference[0][1], PLAN, TOKENIZER)
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    show.save_png(tmp_path / "new" / "batch.png", picture)
    saved = decode((tmp_path / "new" / "batch.png").read_bytes())
    np.testing.assert_array_equal(saved, picture)
    # The first row's image is in the first card, below the header.
    first = show._fit(reference[0][1]["text"]["image"][0, 0], 144, 96)
    np.testing.assert_array_equal(picture[30 : 30 + first.shape[0], 4 : 4 + first.shape[1]], first)


def test_a_caption_of_unknown_words_is_an_error_that_names_its_record(data, tmp_path):
    """Two such captions would be the same to the model."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nclothes\nany\nmodality\n")
    few = Tokenizer(tmp_path, max_length=24)
    plan = plan_batch([Unit.of_task("tiny_t2i", "t2i")], 8, 1, tokenizer=few)
    made = TrainingData.of(plan, data, few, BatchOptions(**OPTIONS))
    with (
        pytest.raises(UnknownWordsError, match=r"data set tiny_t2i, split train, record \d+ \(.+\): the sentence"),
        made.stream(0, 1, range(1), ReadAhead()) as batches_of,
    ):
        next(batches_of)


def test_instructions_of_one_checksum_have_two_keys():
    """These ids once gave one key of 31 bits (crc32), and the rows that read them were of one instruction."""

    def crc(ids: np.ndarray) -> int:
        return zlib.crc32(ids.tobytes()) & 0x7FFFFFFF

    seen: dict[int, np.ndarray] = {}
    for ids in np.random.default_rng(0).integers(0, 300, (200_000, 4)).astype(np.int32):
        other = seen.setdefault(crc(ids), ids)
        if (other != ids).any():
            break
    assert crc(other) == crc(ids)
    keys = [instruction_key(row.tobytes()) for row in (other, ids)]
    assert (keys[0] != keys[1]).any()
    assert [(key.dtype, key.shape, key.min() >= 0) for key in keys] == [(np.int32, (2,), True)] * 2
