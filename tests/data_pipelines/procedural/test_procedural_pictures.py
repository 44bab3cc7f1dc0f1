"""Pictures of the procedural benchmark: what they depend on, and that colour histograms are at chance."""

import dataclasses
import pickle

import cv2
import numpy as np
import pytest
import simplejpeg
from procedural_shots import BENCHMARK, chance, columns, mean_average_precision, relate, shots_of

from data_pipelines.dataset.schema import INFRARED
from data_pipelines.procedural.benchmark import Benchmark
from data_pipelines.procedural.drawing import render, scene, template


def histograms(benchmark, shots):
    """Returns f32[n, 512], square roots of joint RGB histograms."""
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


def test_pictures_depend_on_seed_and_shot_alone():
    few = Benchmark(image_size=(64, 32), train_people=3, test_people=2)
    again = pickle.loads(pickle.dumps(BENCHMARK))
    for split in ("train", "query", "gallery"):
        shot = shots_of("ctcc")[split][7 if split == "train" else 1]
        same = few.shots("ctcc")[split][7 if split == "train" else 1]
        if split == "train":  # test people are dealt their outfits in turn, training people draw theirs alone
            assert same == shot
        assert again.load(shot) == BENCHMARK.load(shot)
    other = Benchmark(seed=1, image_size=(64, 32))
    assert other.load(other.shots("ctcc")["train"][0]).image != BENCHMARK.load(shots_of("ctcc")["train"][0]).image


@pytest.mark.parametrize("size", [(256, 128), (64, 32), (128, 128), (96, 80), (33, 17)])
def test_the_same_scene_at_any_size(size):
    for shot in shots_of("cc")["gallery"][:5]:
        image = render.render(shot.scene, size)
        assert image.shape == (*size, 3)
        assert image.dtype == np.uint8
        if size[0] == 2 * size[1]:
            small = cv2.resize(image, (32, 64), interpolation=cv2.INTER_AREA).astype(float)
            reference = cv2.resize(render.render(shot.scene, (128, 64)), (32, 64), interpolation=cv2.INTER_AREA)
            assert np.corrcoef(small.ravel(), reference.ravel())[0, 1] > 0.94


def test_infrared_brightness_follows_the_material():
    shot = next(s for s in shots_of("vi")["gallery"] if s.scene.camera >= scene.VISIBLE_CAMERAS)
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
    shots = [s for s in shots_of("cc")["gallery"] if s.person.endswith("p005")]
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
    query, gallery = shots_of("ctcc")["query"][0], shots_of("ctcc")["gallery"]
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
