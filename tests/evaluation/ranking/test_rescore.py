"""The best of a first ranking judged again, before the rest."""

import weakref

import jax
import numpy as np
import pytest

from irm_jax.evaluation.ranking.rescore import CaptionMatcher, InstructedMatcher, Rescored
from irm_jax.evaluation.ranking.scores import Selection

QUERY = np.array([[1.0, 0.0], [0.0, 2.0]], np.float32)
GALLERY = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 3.0], [-1.0, 0.0]], np.float32)


def rescored(judge, top, queries, images=5):
    """Scores of some queries against the first images, as they come to the devices."""
    placed = Rescored(QUERY, GALLERY, judge, top).place(Selection(np.arange(2), np.arange(images)))
    buffer = placed.block(np.array(queries), 8, None)
    return placed.buffer.on_host(buffer)[: len(queries)]


def order(scores):
    return np.argsort(-scores, axis=1, kind="stable").tolist()


def test_the_best_come_in_the_judges_order_and_the_rest_by_cosine():
    """By cosine: 0 1 2 3 4 and 3 2 1 0 4 (0 and 4 tie at 0). The judge likes high numbers."""
    asked = []

    def judge(query, gallery):
        asked.append((query.tolist(), gallery.tolist()))
        return gallery.astype(np.float32)

    scores = rescored(judge, 3, [1, 0])
    assert asked == [([0, 0, 0, 1, 1, 1], [0, 1, 2, 1, 2, 3])]
    assert order(scores) == [[3, 2, 1, 0, 4], [2, 1, 0, 3, 4]]
    np.testing.assert_allclose(scores[1, 3:], [0, -1], atol=1e-7)


def test_equals_keep_the_galleries_order():
    scores = rescored(lambda q, g: np.zeros(len(q), np.float32), 4, [0, 1])
    assert order(scores) == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("top", [5, 128])
def test_more_than_there_are_is_all(top):
    scores = rescored(lambda q, g: g.astype(np.float32), top, [0])
    assert order(scores) == [[4, 3, 2, 1, 0]]
    assert len(np.unique(scores)) == 5


def test_the_judge_is_asked_for_records():
    """Of a selection, too: query 1 against images 3 and 1."""
    asked = []
    judge = lambda q, g: asked.append((q.tolist(), g.tolist())) or np.zeros(len(q), np.float32)  # noqa: E731
    placed = Rescored(QUERY, GALLERY, judge, 2).place(Selection(np.array([1]), np.array([3, 1])))
    placed.block(np.array([0]), 8, None)
    assert asked == [([1, 1], [3, 1])]


class CountingEmbedder:
    """Judges a caption and an image by 10 * caption + image, whose "tokens" are these numbers; counts the pairs, and
    the images whose tokens are held while a pair is judged."""

    def __init__(self):
        self.mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "model"))
        self.asked, self.encoded, self.held, self.most_held = [], [], 0, 0

    def batches(self, images):
        """Two images at a time, of a batch of three."""
        for start in range(0, len(images), 2):
            numbers = images[start : start + 2]
            self.encoded.append(numbers.tolist())
            yield numbers, np.resize(numbers, 3)

    def image_tokens(self, features):
        tokens = features.astype(float)[:, None, None]
        self.held += len(tokens)
        weakref.finalize(tokens, self._release, len(tokens))
        return tokens

    def _release(self, images):
        self.held -= images

    def caption_tokens(self, sentences):
        return np.array([[float(s)] for s in sentences]), np.ones((len(sentences), 1), bool)

    def match(self, tokens, mask, image):
        assert mask.all()
        self.most_held = max(self.most_held, self.held)
        self.asked += zip(tokens[:, 0].tolist(), image[:, 0, 0].tolist(), strict=True)
        return 10 * tokens[:, 0] + image[:, 0, 0]


def test_a_pair_of_sentence_and_image_is_judged_once():
    embedder = CountingEmbedder()
    matcher = CaptionMatcher(embedder, ["7", "3", "7"], 4, embedder.batches)
    queries, images = np.array([0, 1, 2, 2]), np.array([3, 0, 3, 1])
    np.testing.assert_array_equal(matcher(queries, images), [73, 30, 73, 71])
    assert set(embedder.asked) == {(7.0, 3.0), (3.0, 0.0), (7.0, 1.0)}
    embedder.asked.clear()
    np.testing.assert_array_equal(matcher(queries[::-1], images[::-1]), [71, 73, 30, 73])
    assert not embedder.asked
    np.testing.assert_array_equal(matcher(np.array([1, 0]), np.array([2, 1])), [32, 71])
    assert set(embedder.asked) == {(3.0, 2.0)}


def test_pairs_with_captions_are_judged_as_in_a_loop(monkeypatch):
    """Fewer pairs at a time than a batch has; each image is encoded once, tokens of two batches are held at most."""
    monkeypatch.setattr("irm_jax.evaluation.ranking.rescore.PAIRS_AT_ONCE", 4)
    embedder, random = CountingEmbedder(), np.random.default_rng(0)
    captions = [str(one) for one in random.integers(0, 9, 12)]
    matcher = CaptionMatcher(embedder, captions, 30, embedder.batches)
    queries, images = np.divmod(random.permutation(12 * 30)[:300], 30)
    expected = [10 * float(captions[query]) + image for query, image in zip(queries, images, strict=True)]
    np.testing.assert_array_equal(matcher(queries, images), expected)
    assert embedder.encoded == [[image, image + 1] for image in range(0, 30, 2)]
    assert len(set(embedder.asked)) == len(
        {(captions[query], image) for query, image in zip(queries, images, strict=True)}
    )
    assert embedder.most_held <= 6


class EditingEmbedder:
    """Embeds an image (a number per feature) under an instruction (a word's length) as [image + length, 1]."""

    def instructions(self, instructions):
        return np.array([len(one) for one in instructions], np.float32)

    def edit_pairs(self, features, rows, table, index):
        made = features[rows] + table[index]
        return np.stack([made, np.ones_like(made)], axis=1)


@pytest.mark.parametrize("table_rows", [1024, 2])
def test_images_are_judged_under_the_querys_instruction(table_rows, monkeypatch):
    """Against a loop over pairs; each image is encoded once per table of instructions."""
    monkeypatch.setattr("irm_jax.evaluation.ranking.rescore.TABLE_ROWS", table_rows)
    words, own = ["a", "red shirt", "bag"], np.array([1, 0, 2, 1])
    pixels = np.array([-3.0, 0.5, -7.0, 2.0, -1.0], np.float32)
    query = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    encoded = []

    def batches(images):
        for start in range(0, len(images), 2):
            encoded.append(images[start : start + 2].tolist())
            yield images[start : start + 2], np.resize(pixels[images[start : start + 2]], 3)

    match = InstructedMatcher(EditingEmbedder(), query, (words, own), 5, batches)
    pairs = np.array([(q, g) for q in range(4) for g in range(5) if g != 2])
    found = match(pairs[:, 0], pairs[:, 1])
    for (q, g), score in zip(pairs, found, strict=True):
        image = np.array([pixels[g] + len(words[own[q]]), 1])
        expected = query[q] @ image / np.linalg.norm(query[q]) / np.linalg.norm(image)
        assert score == pytest.approx(expected, abs=1e-6)
    assert encoded == [[0, 1], [3, 4]] * (2 if table_rows == 2 else 1)
    np.testing.assert_array_equal(match(np.array([3, 0]), np.array([4, 0])), found[[-1, 0]])
    assert len(encoded) == (4 if table_rows == 2 else 2)
    match(np.array([0]), np.array([2]))
    assert encoded[-1] == [2]
