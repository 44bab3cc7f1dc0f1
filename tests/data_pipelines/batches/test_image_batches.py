"""Batches of stored images: in order, whole, resized as the reader of pictures does."""

import numpy as np
import pytest

from data_pipelines.batches.image_batches import StoredImages, image_batches
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.images import decode, resize


@pytest.fixture(scope="module")
def data(tiny_data):
    return tiny_data[1]


@pytest.mark.parametrize("threads", [0, 3])
def test_evaluation_images_come_in_order_and_whole(data, threads):
    reader = data["tiny_cc"].reader("train")
    ids = np.random.default_rng(0).permutation(len(reader))[:23]
    with image_batches(StoredImages(reader), ids, (40, 20), 8, ReadAhead(threads=threads)) as made:
        found = list(made)
    assert [len(part) for part, _ in found] == [8, 8, 7]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in found]), ids)
    for record, image in zip(ids, np.concatenate([images for _, images in found]), strict=True):
        np.testing.assert_array_equal(image, resize(decode(reader[record]["image"]), (40, 20)))


def test_evaluation_of_instruction_images(data):
    reader = data["tiny_ctcc"].reader("train")
    pictures = StoredImages(reader, field="instruction_image")
    with image_batches(pictures, [5, 0], (16, 16), 4, ReadAhead(threads=0)) as made:
        ((ids, images),) = made
    np.testing.assert_array_equal(ids, [5, 0])
    np.testing.assert_array_equal(images[0], decode(reader[5]["instruction_images"][0]))
    without = data["tiny_cc"].reader("train")
    with (
        pytest.raises(ValueError, match=r"record 3, file .* has no instruction image"),
        image_batches(StoredImages(without, field="instruction_image"), [3], (16, 16), 4, ReadAhead(threads=0)) as made,
    ):
        next(made)
    with pytest.raises(ValueError, match="must be 'image' or 'instruction_image'"):
        StoredImages(without, field="picture")
    with pytest.raises(ValueError, match="batch_size = 0"):
        image_batches(StoredImages(without), [3], (16, 16), 0)


def test_a_truncated_jpeg_is_named(data):
    reader = data["tiny_vi"].reader("train", ("image", "file"))
    records = {i: reader[i] for i in range(50)}
    records[40]["image"] = records[40]["image"][:-60]
    images = StoredImages(records, "tiny_vi/train")
    with (
        pytest.raises(ValueError, match=f"tiny_vi/train, record 40, file {records[40]['file']}: the image does not"),
        image_batches(images, range(50), (32, 16), 8, ReadAhead(threads=0)) as made,
    ):
        list(made)
