"""The procedural benchmark: what data.md section 6 promises, checked on rows, pictures and controls."""

import collections
import dataclasses
import functools
import pickle
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines import procedural, tasks
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.schema import INFRARED, UNKNOWN
from data_pipelines.dataset.writer import BuildOptions
from data_pipelines.errors import DatasetError
from data_pipelines.procedural import contact_sheet, outfits, people, rows
from data_pipelines.procedural.benchmark import Benchmark
from data_pipelines.procedural.drawing import render, scene, template

BENCHMARK = Benchmark(image_size=(64, 32))
ATTRIBUTES = len(outfits.BASE_SLOTS)


@functools.cache
def plan(task):
    return BENCHMARK.shots(task)


def by_person(shots):
    people_shots = collections.defaultdict(list)
    for shot in shots:
        people_shots[shot.person].append(shot)
    return people_shots


def columns(shots):
    """The fields that targets are made of, as arrays of one row a shot."""
    outfit = np.array([shot.row.outfit for shot in shots])
    named = np.array([shot.row.named or (UNKNOWN,) * ATTRIBUTES for shot in shots])
    return {
        "identity": np.array([int(shot.person.rpartition("p")[2]) for shot in shots]),
        "camera": np.array([shot.scene.camera for shot in shots]),
        "infrared": np.array([shot.scene.camera >= scene.VISIBLE_CAMERAS for shot in shots]),
        "outfit": outfit @ [1000, 100, 10, 1],
        "attributes": outfit,
        "wanted": np.array([shot.row.wanted or (-9,) * ATTRIBUTES for shot in shots]) @ [1000, 100, 10, 1],
        "named": named,
    }


def relate(task, q, g):
    """The strict targets of data.md section 6, written down once more: (positive, junk), both bool[Q, G]."""
    pair = {name: (q[name][:, None], g[name][None]) for name in q if q[name].ndim == 1}
    same = np.equal(*pair["identity"])
    asked = same & (q["wanted"][:, None] == g["outfit"][None])
    every_named = ((q["named"][:, None] == g["attributes"][None]) | (q["named"][:, None] == UNKNOWN)).all(-1)
    positive = {
        "trad": same & np.equal(*pair["outfit"]) & ~np.equal(*pair["camera"]),
        "cc": same & ~np.equal(*pair["outfit"]),
        "ctcc": asked,
        "vi": same & ~np.equal(*pair["infrared"]),
        "t2i": asked,
        "li": same & every_named,
    }[task]
    return positive, np.zeros_like(same) if task in ("ctcc", "li") else same & ~positive


def mean_average_precision(score, positive, junk):
    values = []
    for s, p, j in zip(score, positive, junk, strict=True):
        hits = np.flatnonzero(p[~j][np.argsort(-s[~j], kind="stable")])
        values.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(values))


def chance(positive, junk):
    """The expected mAP of a random order."""
    values = []
    for p, j in zip(positive, junk, strict=True):
        n, r = int((~j).sum()), int(p.sum())
        harmonic = (1 / np.arange(1, n + 1)).sum()
        values.append((harmonic + (r - 1) / (n - 1) * (n - harmonic)) / n)
    return float(np.mean(values))


def oracle_score(task, q, g, rng):
    """Identity above all, then the share of what is asked for that the image shows; ties at random."""
    wanted = q["attributes"] if task == "trad" else q["named"]
    shown = (wanted[:, None] == g["attributes"][None]) & (wanted[:, None] != UNKNOWN)
    same = q["identity"][:, None] == g["identity"][None]
    return 100 * same + shown.sum(-1) + 0.1 * rng.random(same.shape)


def histograms(benchmark, shots):
    """f32[n, 512], square roots of joint RGB histograms."""
    out = []
    for shot in shots:
        image = simplejpeg.decode_jpeg(render.render_jpeg(shot.scene, benchmark.image_size))
        out.append(np.sqrt(cv2.calcHist([image], [0, 1, 2], None, [8] * 3, [0, 256] * 3).ravel()))
    return np.array(out)


def histogram_over_chance(benchmark, names):
    ratio = {}
    for task in names:
        shots = benchmark.shots(task)
        positive, junk = relate(task, columns(shots["query"]), columns(shots["gallery"]))
        score = histograms(benchmark, shots["query"]) @ histograms(benchmark, shots["gallery"]).T
        ratio[task] = mean_average_precision(score, positive, junk) / chance(positive, junk)
    return ratio


# --- rows ---


def test_row_counts_and_order():
    total = 0
    for task in tasks.TASK_NAMES:
        train, query, gallery = (plan(task)[split] for split in ("train", "query", "gallery"))
        assert (len(train), len(query), len(gallery)) == (96 * 12, 64 * 2, 64 * 8)
        assert {len(shots) for shots in by_person(query).values()} == {2}
        assert {len(shots) for shots in by_person(gallery).values()} == {8}
        assert all([s.person for s in split] == sorted(s.person for s in split) for split in (train, query, gallery))
        assert len({shot.file for shot in train}) == len(train)
        assert len({shot.file for shot in query + gallery}) == len(query + gallery)
        total += len(train) + len(query) + len(gallery)
    assert total == 10752


@pytest.mark.parametrize("task", tasks.TASK_NAMES)
def test_every_query_has_a_positive_and_the_oracle_is_perfect(task):
    q, rng = columns(plan(task)["query"]), np.random.default_rng(0)
    union = [shot for name in tasks.TASK_NAMES for shot in plan(name)["gallery"]]
    for gallery in (plan(task)["gallery"], union):
        g = columns(gallery)
        positive, junk = relate(task, q, g)
        assert positive.any(1).all()
        assert not (positive & junk).any()
        assert mean_average_precision(oracle_score(task, q, g, rng), positive, junk) >= 0.99


@pytest.mark.parametrize(("task", "expected"), [("ctcc", 0.28), ("li", 0.28)])
def test_perfect_identity_without_the_instruction_is_not_enough(task, expected):
    q, g, rng = columns(plan(task)["query"]), columns(plan(task)["gallery"]), np.random.default_rng(0)
    same = q["identity"][:, None] == g["identity"][None]
    worn = q["outfit"][:, None] == g["outfit"][None]
    positive, junk = relate(task, q, g)
    scores = [mean_average_precision(10 * same + worn + 0.5 * rng.random(same.shape), positive, junk) for _ in range(5)]
    assert np.mean(scores) == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_a_perfect_reading_of_the_instruction_alone_is_not_enough(task):
    q, g, rng = columns(plan(task)["query"]), columns(plan(task)["gallery"]), np.random.default_rng(0)
    shown = (q["named"][:, None] == g["attributes"][None]) & (q["named"][:, None] != UNKNOWN)
    score = mean_average_precision(shown.sum(-1) + 0.5 * rng.random(shown.shape[:2]), *relate(task, q, g))
    assert 0.10 < score < 0.30


def test_queries_of_ctcc_and_li_do_not_wear_what_they_ask_for():
    assert all(shot.row.outfit != shot.row.wanted == shot.row.named for shot in plan("ctcc")["query"])
    for shot in plan("li")["query"]:
        named = [(asked, worn) for asked, worn in zip(shot.row.named, shot.row.outfit, strict=True) if asked != UNKNOWN]
        assert len(named) in (2, 3)
        assert sum(asked != worn for asked, worn in named) == 1
        assert all(asked in (UNKNOWN, want) for asked, want in zip(shot.row.named, shot.row.wanted, strict=True))


@pytest.mark.parametrize("task", ["ctcc", "li"])
def test_owned_outfits_agree_in_three_two_and_no_slots(task):
    rng = np.random.default_rng(0)
    owned = [
        *rows.own_test(task, BENCHMARK.catalogue, 64, rng),
        *[rows.own_train(task, BENCHMARK.wardrobe, BENCHMARK.catalogue, rng) for _ in range(20)],
    ]
    for own in owned:
        assert [outfits.agreement(own[0], other) for other in own[1:]] == [3, 2, 0]


def test_outfits_of_cc_say_nothing_about_the_person():
    g = columns(plan("cc")["gallery"])
    agree = (g["attributes"][:, None] == g["attributes"][None]).mean(-1)
    same, twin = g["identity"][:, None] == g["identity"][None], g["outfit"][:, None] == g["outfit"][None]
    assert agree[same & ~twin].mean() == pytest.approx(agree[~same & ~twin].mean(), abs=0.03)


@pytest.mark.parametrize("task", ["cc", "ctcc", "t2i", "li"])
def test_each_test_outfit_has_about_eleven_wearers(task):
    wearers = collections.defaultdict(set)
    for shot in plan(task)["gallery"]:
        wearers[shot.row.outfit].add(shot.person)
    assert set(wearers) == set(BENCHMARK.catalogue.test)
    assert all(9 <= len(found) <= 13 for found in wearers.values())


def test_no_training_person_wears_a_test_outfit():
    assert len(BENCHMARK.catalogue.test) == 24
    assert len(set(BENCHMARK.catalogue.trad)) == 96
    assert set(BENCHMARK.catalogue.test) < set(BENCHMARK.catalogue.trad)
    worn = {shot.row.outfit for task in tasks.TASK_NAMES for shot in plan(task)["train"]}
    assert not worn & set(BENCHMARK.catalogue.trad)
    for slot in range(ATTRIBUTES):
        assert {outfit[slot] for outfit in worn} == set(range(BENCHMARK.wardrobe.sizes[slot]))


def test_training_people_have_the_outfits_cameras_and_modalities_the_samplers_need():
    outfits_of = {"trad": 1, "cc": 4, "ctcc": 4, "vi": 2, "t2i": 4, "li": 4}
    for task, count in outfits_of.items():
        for person, shots in by_person(plan(task)["train"]).items():
            pictured = shots[0].file.startswith("Trad/")
            assert len({shot.row.outfit for shot in shots}) == (1 if pictured else count), person
            assert len({shot.scene.camera for shot in shots}) >= 4
            infrared = sum(shot.scene.camera >= scene.VISIBLE_CAMERAS for shot in shots)
            assert infrared == (6 if task == "vi" else 0)


def test_the_overlap_trap():
    overlap = [shots for shots in by_person(plan("t2i")["train"]).values() if shots[0].file.startswith("Trad/")]
    trad = {shot.person: shot for shot in plan("trad")["train"]}
    assert len(overlap) == 16
    for shots in overlap:
        source = f"procedural_trad/{shots[0].file.removeprefix('Trad/').split('_')[0]}"
        assert shots[0].person.startswith("procedural_t2i/")
        assert shots[0].scene.person == trad[source].scene.person
        assert shots[0].row.outfit == trad[source].row.outfit
    pictured = collections.Counter(
        person for task in tasks.TASK_NAMES for person in {shot.scene.person for shot in plan(task)["train"]}
    )
    assert sum(count > 1 for count in pictured.values()) == 16
    assert not set(pictured) & {shot.scene.person for shot in plan("trad")["query"]}


def test_test_people_are_the_same_in_all_sets():
    looks = [{shot.person: shot.scene.person for shot in plan(task)["gallery"]} for task in tasks.TASK_NAMES]
    assert all(look == looks[0] for look in looks)
    assert len(set(looks[0].values())) == 64


def test_people_are_spread_out():
    traits = np.array(
        [[getattr(people.draw_person(0, "procedural_test", i), name) for name in people.TRAITS] for i in range(64)]
    )
    distance = np.linalg.norm(traits[:, None] - traits[None], axis=-1) + 9 * np.eye(64)
    assert distance.min() > 0.3
    assert (np.histogram(traits, bins=4, range=(0, 1))[0] > 64 * 8 / 4 * 0.8).all()


def test_a_change_of_rows_needs_a_new_version():
    shots = [shot for task in tasks.TASK_NAMES for split in plan(task).values() for shot in split]
    text = repr([(shot.row, shot.file, shot.person, BENCHMARK.sentences(shot)) for shot in shots])
    assert (procedural.VERSION, zlib.crc32(text.encode())) == ("1.0.0", 222239804), (
        "raise VERSION, state the new checksum"
    )


# --- pictures ---


def test_pictures_depend_on_seed_and_shot_alone():
    few = Benchmark(image_size=(64, 32), train_people=3, test_people=2)
    again = pickle.loads(pickle.dumps(BENCHMARK))
    for split in ("train", "query", "gallery"):
        shot = plan("ctcc")[split][7 if split == "train" else 1]
        same = few.shots("ctcc")[split][7 if split == "train" else 1]
        if split == "train":  # test people are dealt their outfits in turn, training people draw theirs alone
            assert same == shot
        assert again.load(shot) == BENCHMARK.load(shot)
    other = Benchmark(seed=1, image_size=(64, 32))
    assert other.load(other.shots("ctcc")["train"][0]).image != BENCHMARK.load(plan("ctcc")["train"][0]).image


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (128, 128), (96, 80), (33, 17)])
def test_the_same_scene_at_any_size(size):
    for shot in plan("cc")["gallery"][:5]:
        image = render.render(shot.scene, size)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        if size[0] == 2 * size[1]:
            small = cv2.resize(image, (32, 64), interpolation=cv2.INTER_AREA).astype(float)
            reference = cv2.resize(render.render(shot.scene, (128, 64)), (32, 64), interpolation=cv2.INTER_AREA)
            assert np.corrcoef(small.ravel(), reference.ravel())[0, 1] > 0.94


def test_infrared_brightness_follows_the_material():
    shot = next(s for s in plan("vi")["gallery"] if s.scene.camera >= scene.VISIBLE_CAMERAS)
    image = render.render(shot.scene, (128, 64))
    assert (image == image[..., :1]).all()
    upper, pattern, lower, bag = shot.scene.outfit
    dyed = dataclasses.replace(shot.scene, outfit=((upper + 3) % 8, pattern, (lower + 2) % 6, bag))
    np.testing.assert_array_equal(render.render(dyed, (128, 64)), image)
    rewoven = dataclasses.replace(shot.scene, material=(*shot.scene.material, 1))
    assert (render.render(rewoven, (128, 64)) != image).mean() > 0.05
    visible = dataclasses.replace(shot.scene, camera=0)
    assert BENCHMARK.load(shot).modality == INFRARED
    assert np.ptp(render.render(visible, (128, 64)).astype(int), axis=-1).mean() > 20


@pytest.mark.parametrize("trait", ["height", "shoulder", "hip", "leg", "head", "arm", "stoop", "skin"])
def test_each_trait_shows(trait):
    shots = [s for s in plan("cc")["gallery"] if s.person.endswith("p005")]
    changed = []
    for shot in shots:
        low, high = (
            dataclasses.replace(shot.scene, person=dataclasses.replace(shot.scene.person, **{trait: value}))
            for value in (0.1, 0.9)
        )
        difference = render.render(low, (128, 64)).astype(int) - render.render(high, (128, 64))
        changed.append((np.abs(difference).max(-1) > 40).mean())
    assert np.mean(changed) > 0.008


def test_templates_show_clothes_and_no_person():
    wardrobe = BENCHMARK.wardrobe
    seen = {template.template_jpeg(outfit, wardrobe, (64, 64)) for outfit in BENCHMARK.catalogue.trad}
    assert len(seen) == 96
    image = template.render_template(BENCHMARK.catalogue.test[0], wardrobe, (64, 96))
    assert image.shape == (64, 96, 3)
    assert (image[[0, 0, -1, -1], [0, -1, 0, -1]] == 255).all()
    query, gallery = plan("ctcc")["query"][0], plan("ctcc")["gallery"]
    match = next(s for s in gallery if s.row.outfit == query.row.wanted)
    assert BENCHMARK.load(query).instruction_images == BENCHMARK.load(match).instruction_images


def test_a_histogram_is_at_chance_on_cc_and_vi_and_above_on_trad():
    ratio = histogram_over_chance(Benchmark(), ("trad", "cc", "vi"))
    assert ratio["cc"] <= 1.3
    assert ratio["vi"] <= 1.3
    assert 1.5 < ratio["trad"] < 4


def test_the_hard_mode_puts_a_histogram_at_chance_on_trad():
    ratio = histogram_over_chance(Benchmark(hard=True), ("trad", "cc"))
    assert ratio["trad"] <= 1.3
    assert ratio["cc"] <= 1.3


# --- records ---


def test_records_carry_the_fields_of_their_task():
    for task in tasks.TASK_NAMES:
        for split in ("train", "query", "gallery"):
            shot = plan(task)[split][3]
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
    for shot in plan("t2i")["query"][:40]:
        (caption,) = BENCHMARK.load(shot).sentences
        person, text = shot.scene.person, caption.lower()
        assert people.HAIR_COLOURS[person.hair_colour] in text
        for slot, value in zip(outfits.BASE_SLOTS[:3], shot.row.outfit, strict=False):
            assert slot.values[value] in text
        words = {"short": ("short", "small"), "tall": ("tall",), "medium": ()}[people.stature(person)]
        assert not words or any(word in text for word in words)


def test_build_writes_all_six_data_sets(tmp_path):
    sizes = {"image_size": (32, 16), "template_size": (16, 16), "train_people": 3, "test_people": 2}
    benchmark, options = Benchmark(**sizes), BuildOptions(workers=1, progress=False)
    manifests = procedural.build(tmp_path, benchmark, options)
    assert [m.name for m in manifests] == [f"procedural_{task}" for task in tasks.TASK_NAMES]
    dataset = open_dataset(tmp_path, "procedural_li")
    index, reader = dataset.index("query"), dataset.reader("query")
    expected = [benchmark.load(shot) for shot in benchmark.shots("li")["query"]]
    assert [dataset.manifest.people[i] for i in index.identity] == [record.person for record in expected]
    assert index.instruction_attributes[:, :ATTRIBUTES].tolist() == [list(r.instruction_attributes) for r in expected]
    assert [reader[i]["image"] for i in range(len(reader))] == [record.image for record in expected]
    again = procedural.build(tmp_path, benchmark, options)
    assert [m.content_hash for m in again] == [m.content_hash for m in manifests]
    with pytest.raises(DatasetError, match="procedural_trad"):
        procedural.build(tmp_path, Benchmark(**sizes, seed=1), options)


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
