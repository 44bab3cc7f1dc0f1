"""Hidden, guessed and replaced words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from irm_jax.losses.words import (
    CaptionWords,
    Vocabulary,
    draw_words,
    guessed_places,
    guessed_word_loss,
    is_word,
    mask_words,
    masked_word_loss,
    replaced_word_loss,
)

WORDS = Vocabulary(size=20, pad=0, cls=2, sep=3, mask=4)
TABLE = 24  # padded


def captions(rows=200, length=12, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, WORDS.size, (rows, length)).astype(np.int32)
    tokens[:, 0] = WORDS.cls
    for row, end in enumerate(rng.integers(2, length, rows)):
        tokens[row, end] = WORDS.sep
        tokens[row, end + 1 :] = WORDS.pad
    return tokens


def test_padding_cls_and_sep_are_no_words():
    tokens = jnp.array([[2, 7, 8, 3, 0, 0]])
    np.testing.assert_array_equal(is_word(tokens, WORDS), [[0, 1, 1, 0, 0, 0]])


def test_masking_takes_its_shares_and_leaves_special_tokens():
    tokens = captions(4000)
    changed, selected = map(np.asarray, mask_words(jax.random.key(0), tokens, 0.15, WORDS))
    word = np.asarray(is_word(tokens, WORDS))
    assert not np.any(selected & ~word)
    np.testing.assert_array_equal(changed[~selected], tokens[~selected])
    number = selected.sum()
    assert selected[word].mean() == pytest.approx(0.15, abs=4 * np.sqrt(0.15 * 0.85 / word.sum()))
    kept, masked = changed[selected] == tokens[selected], changed[selected] == WORDS.mask
    tolerance = 4 * np.sqrt(0.25 / number)
    # 10% stay and 10% become any of 20 entries, among them the word itself and [MASK].
    assert masked.mean() == pytest.approx(0.8 + 0.1 / 20, abs=tolerance)
    assert kept.mean() == pytest.approx(0.1 + 0.1 / 20, abs=tolerance)
    assert changed.max() < WORDS.size


def test_replacements_follow_the_logits_and_leave_special_tokens():
    tokens = captions(2000, 6)
    logits = np.full((*tokens.shape, TABLE), -50.0, np.float32)
    logits[..., 6], logits[..., 9] = np.log(0.25), np.log(0.75)
    logits[..., WORDS.size :] = 100.0  # entries that only pad the table are never drawn
    drawn = np.asarray(draw_words(jax.random.key(2), jnp.asarray(tokens), jnp.asarray(logits), WORDS))
    word = np.asarray(is_word(tokens, WORDS))
    np.testing.assert_array_equal(drawn[~word], tokens[~word])
    assert set(np.unique(drawn[word])) == {6, 9}
    assert (drawn[word] == 9).mean() == pytest.approx(0.75, abs=4 * np.sqrt(0.19 / word.sum()))


def twin(logits, tokens, selected, taught, share, valid, sets, release_axis):
    """Sums over words by loops: the mean over all selected words of a set's valid captions, spread over them."""
    values = np.zeros(len(tokens))
    number = {s: 0 for s in sets}
    for b in range(len(tokens)):
        for i in range(tokens.shape[1]):
            if not (selected[b, i] and valid[b]):
                continue
            number[sets[b]] += 1
            real = logits[b, i, : WORDS.size].astype(np.float64)
            log_p = real - np.log(np.exp(real).sum())
            nats = -log_p[tokens[b, i]]
            if taught is not None:
                q = np.exp(taught[b, i, : WORDS.size].astype(np.float64))
                q /= q.sum()
                if release_axis:
                    column = logits[b, :, : WORDS.size].astype(np.float64)
                    log_p = column[i] - np.log(np.exp(column).sum(axis=0))
                nats = (1 - share) * nats - share * (q * log_p).sum()
            values[b] += nats
    return values * [valid[sets == s].sum() / max(number[s], 1) for s in sets]


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("release_axis", [False, True])
def test_the_masked_word_loss_is_its_twin(taught, release_axis):
    rng = np.random.default_rng(4)
    tokens = captions(7, 9, seed=1)
    selected = np.array(mask_words(jax.random.key(1), tokens, 0.4, WORDS)[1])
    selected[2] = False  # a caption without a hidden word
    valid = np.array([1, 1, 1, 1, 1, 0, 1], bool)
    sets = np.array([1, 1, 1, 1, 4, 4, 4])
    logits = rng.normal(size=(7, 9, TABLE)).astype(np.float32)
    teacher = rng.normal(size=(7, 9, TABLE)).astype(np.float32) if taught else None
    loss, right = masked_word_loss(
        jnp.asarray(logits), CaptionWords(tokens, selected, valid, sets),
        None if teacher is None else jnp.asarray(teacher), 0.3, WORDS, release_axis=release_axis,
    )  # fmt: skip
    np.testing.assert_allclose(loss, twin(logits, tokens, selected, teacher, 0.3, valid, sets, release_axis), rtol=2e-5)
    counted = selected & valid[:, None]
    guess = (logits[..., : WORDS.size].argmax(-1) == tokens) & counted
    for own in (sets == 1, sets == 4):
        share = float(jnp.sum(right[own])) / valid[own].sum()
        assert share == pytest.approx(guess[own].sum() / counted[own].sum(), rel=1e-5)
    assert loss[2] == 0
    assert loss[5] == 0


@pytest.mark.parametrize("taught", [False, True])
def test_words_guessed_where_they_are_hidden_have_the_loss_of_all(taught):
    """Two blocks of four captions; values, shares and the gradient of the logits."""
    rng = np.random.default_rng(4)
    tokens = captions(8, 9, seed=1)
    selected = jnp.asarray(mask_words(jax.random.key(1), tokens, 0.15, WORDS)[1])
    guesses, kept = guessed_places(selected.reshape(2, 4, 9), 0.15)
    np.testing.assert_array_equal(kept.reshape(8, 9), selected)
    assert guesses.place.shape[1] < 4 * 9
    words = CaptionWords(jnp.asarray(tokens), selected, jnp.arange(8) != 5, jnp.arange(8) // 4)
    logits, teacher = (jnp.asarray(rng.normal(size=(8, 9, TABLE)), jnp.float32) for _ in range(2))

    def at_places(x):
        return jnp.take_along_axis(x.reshape(2, 36, TABLE), guesses.place[..., None], axis=1)

    def every(logits):
        return masked_word_loss(logits, words, teacher if taught else None, 0.3, WORDS)

    def some(logits):
        teach = at_places(teacher) if taught else None
        return guessed_word_loss(at_places(logits), guesses, words, teach, 0.3, WORDS)

    for found, expected in zip(some(logits), every(logits), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    gradients = [jax.grad(lambda x, f=f: (f(x)[0] ** 2).sum())(logits) for f in (some, every)]
    np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)


def test_hidden_words_beyond_the_room_are_not_judged():
    selected = jnp.ones((1, 10, 100), bool)
    guesses, kept = guessed_places(selected, 0.15)
    room = guesses.place.shape[1]
    assert 150 + 6 * np.sqrt(150 * 0.85) <= room < 300
    np.testing.assert_array_equal(np.flatnonzero(kept[0]), np.arange(room))


def test_the_teacher_gets_no_gradient_and_padding_entries_none():
    tokens = captions(3, 6)
    selected = np.asarray(is_word(tokens, WORDS))
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6, TABLE)), jnp.float32)

    def value(student, teacher):
        words = CaptionWords(tokens, selected, np.ones(3, bool), np.zeros(3, np.int32))
        return masked_word_loss(student, words, teacher, 0.4, WORDS)[0].sum()

    student, teacher = jax.grad(value, argnums=(0, 1))(logits, logits)
    np.testing.assert_array_equal(teacher, 0)
    np.testing.assert_array_equal(student[..., WORDS.size :], 0)
    assert np.any(np.asarray(student)[..., : WORDS.size] != 0)


def test_no_selected_word_gives_zero_not_nan():
    tokens = captions(2, 5)
    none = np.zeros_like(tokens, bool)
    words = CaptionWords(tokens, none, np.ones(2, bool), np.zeros(2, np.int32))
    loss, right = masked_word_loss(jnp.ones((2, 5, TABLE)), words, None, 0.0, WORDS)
    np.testing.assert_array_equal(loss, 0)
    np.testing.assert_array_equal(right, 0)


def test_replaced_words_by_hand():
    """Two captions of two and one words; logits give p(replaced) = 1/2, 3/4 and 1/4."""
    quarter = np.log(3.0)
    logits = np.zeros((2, 3, 2), np.float32)
    logits[0, 1, 1], logits[1, 0, 0] = quarter, quarter
    word = np.array([[True, True, False], [True, False, False]])
    replaced = np.array([[True, True, False], [False, True, False]])
    words = CaptionWords(np.zeros((2, 3), np.int32), word, np.ones(2, bool), np.zeros(2, np.int32))
    loss, right = replaced_word_loss(jnp.asarray(logits), replaced, words)
    # Mean over words: (log 2 + log 4/3 + log 4/3) / 3; two captions share three words.
    np.testing.assert_allclose(loss, np.array([np.log(2) + np.log(4 / 3), np.log(4 / 3)]) * 2 / 3, rtol=1e-6)
    assert float(loss.mean()) == pytest.approx((np.log(2) + 2 * np.log(4 / 3)) / 3, rel=1e-6)
    np.testing.assert_allclose(right, np.array([1, 1]) * 2 / 3, rtol=1e-6)


@pytest.mark.parametrize("loss", ["masked", "replaced"])
def test_a_set_of_long_captions_weighs_as_much_as_one_of_short_ones(loss):
    """Two captions of one word and two of eight: equal logits everywhere give every caption the same value."""
    tokens = np.full((4, 8), 7, np.int32)
    selected = np.arange(8)[None, :] < np.array([1, 1, 8, 8])[:, None]
    words = CaptionWords(tokens, selected, np.ones(4, bool), np.array([0, 0, 3, 3]))
    if loss == "masked":
        value, _ = masked_word_loss(jnp.zeros((4, 8, WORDS.size)), words, None, 0.0, WORDS)
        np.testing.assert_allclose(value, np.log(WORDS.size), rtol=1e-6)
    else:
        value, _ = replaced_word_loss(jnp.zeros((4, 8, 2)), np.zeros((4, 8), bool), words)
        np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
