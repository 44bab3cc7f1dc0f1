"""Losses on the words of captions: hiding words, guessing them, and finding words that were replaced."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Inexact, Int

from irm_jax.losses.geometry import loss_dtype


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Ids of the special tokens, and the number of entries; logits beyond `size` are padding."""

    size: int
    pad: int
    cls: int
    sep: int
    mask: int


class CaptionWords(NamedTuple):
    """Captions with the words that are judged.

    Attributes:
        tokens: the words as they are, before any is hidden.
        selected: the words that are judged.
        valid: False for padding.
        dataset: number of the data set, within which captions are weighted.
    """

    tokens: Int[Array, "B L"]
    selected: Bool[Array, "B L"]
    valid: Bool[Array, " B"]
    dataset: Int[Array, " B"]


def is_word(tokens: Int[Array, "..."], vocabulary: Vocabulary) -> Bool[Array, "..."]:
    """Which tokens are words of the caption: all but [PAD], [CLS] and [SEP]."""
    return (tokens != vocabulary.pad) & (tokens != vocabulary.cls) & (tokens != vocabulary.sep)


def mask_words(
    key: jax.Array,
    tokens: Int[Array, "*rows L"],
    probability: float,
    vocabulary: Vocabulary,
) -> tuple[Int[Array, "*rows L"], Bool[Array, "*rows L"]]:
    """Hides words as BERT does and returns the changed tokens with the selection.

    Each word is selected with `probability`. Of the selected words 80% become [MASK], 10% a random entry of the
    vocabulary, and 10% stay.

    Source: docs/method.md, "Text-to-image objectives", masked words; ALBEF's `mask`.
    """
    select_key, kind_key, word_key = jax.random.split(key, 3)
    selected = (jax.random.uniform(select_key, tokens.shape) < probability) & is_word(tokens, vocabulary)
    kind = jax.random.uniform(kind_key, tokens.shape)
    random = jax.random.randint(word_key, tokens.shape, 0, vocabulary.size, tokens.dtype)
    changed = jnp.where(kind < 0.8, jnp.asarray(vocabulary.mask, tokens.dtype), jnp.where(kind < 0.9, random, tokens))
    return jnp.where(selected, changed, tokens), selected


def draw_words(
    key: jax.Array,
    tokens: Int[Array, "*rows L"],
    logits: Inexact[Array, "*rows L V"],
    vocabulary: Vocabulary,
) -> Int[Array, "*rows L"]:
    """Draws every word anew from the logits of its place; special tokens stay. No gradient.

    Source: docs/method.md, "Text-to-image objectives", replaced words; RaSa's momentum-based replaced token detection.
    """
    noise = jax.random.gumbel(key, logits.shape, jnp.float32).astype(logits.dtype)
    drawn = jnp.argmax(_real_words(logits, vocabulary) + noise, axis=-1).astype(tokens.dtype)
    return jax.lax.stop_gradient(jnp.where(is_word(tokens, vocabulary), drawn, tokens))


def masked_word_loss(
    logits: Inexact[Array, "B L V"],
    words: CaptionWords,
    taught: Inexact[Array, "B L V"] | None,
    soft_share: Float[Array, ""] | float,
    vocabulary: Vocabulary,
    *,
    release_axis: bool = False,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns per caption the cross-entropy of its selected words, hard and soft, and the share guessed right.

        (1 - soft_share) * -log p(word) + soft_share * -sum_v q(v) log p(v),   q = softmax of `taught` (no gradient)

    The value of a caption is the sum over its selected words divided by the mean number of selected words per valid
    caption of its data set: the mean over the captions of a data set is then the mean over its words, as in the
    released code, and a data set of long captions weighs no more than one of short ones. A caption without a selected
    word has 0.

    Args:
        logits: guesses of the model.
        words: the captions, `selected` the hidden words.
        taught: guesses of the momentum model, None for none.
        soft_share: between 0 and 1.
        vocabulary: entries beyond its size are left out.
        release_axis: the soft part takes log p over the positions of the sentence, padding included, as the released
            code and ALBEF do, and not over the vocabulary.

    Source: docs/method.md, "Text-to-image objectives", masked words; ALBEF's masked language modelling with
    distillation.
    """
    nats, right = _guesses(logits, words.tokens, taught, soft_share, vocabulary, release_axis=release_axis)
    return _per_caption(nats, words), _per_caption(right, words)


class Guesses(NamedTuple):
    """The places of hidden words in R blocks of captions, padded to one number C per block.

    Attributes:
        place: numbers of places in a block, its captions one after the other.
        counted: False for padding.
    """

    place: Int[Array, "R C"]
    counted: Bool[Array, "R C"]


def guessed_places(selected: Bool[Array, "R b L"], probability: float) -> tuple[Guesses, Bool[Array, "R b L"]]:
    """Lists the selected words of each block; returns the list, and `selected` without what found no room.

    The list has room for 6 standard deviations more than are selected on average: less than one draw in 10^8 is cut.
    """
    blocks, captions, length = selected.shape
    count = captions * length
    spread = math.sqrt(count * probability * (1.0 - probability))
    room = min(count, math.ceil(count * probability + 6.0 * spread) + 1)
    flat = selected.reshape(blocks, count)
    place = jnp.argsort(~flat, axis=1, stable=True)[:, :room]
    counted = jnp.take_along_axis(flat, place, axis=1)
    kept = flat & (jnp.cumsum(flat, axis=1) <= room)
    return Guesses(place, counted), kept.reshape(selected.shape)


def guessed_word_loss(
    logits: Inexact[Array, "R C V"],
    guesses: Guesses,
    words: CaptionWords,
    taught: Inexact[Array, "R C V"] | None,
    soft_share: Float[Array, ""] | float,
    vocabulary: Vocabulary,
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """`masked_word_loss` of B = R * b captions where only the hidden words are guessed."""
    blocks, (captions, length) = len(guesses.place), words.tokens.shape
    word = jnp.take_along_axis(words.tokens.reshape(blocks, -1), guesses.place, axis=1)
    nats, right = _guesses(logits, word, taught, soft_share, vocabulary)

    def placed(values: Array) -> Array:
        values = jnp.where(guesses.counted, values, jnp.zeros((), values.dtype))
        empty = jnp.zeros((blocks, captions * length // blocks), values.dtype)
        rows = jnp.arange(blocks)[:, None]
        return empty.at[rows, guesses.place].add(values).reshape(captions, length)

    return _per_caption(placed(nats), words), _per_caption(placed(right), words)


def _guesses(
    logits: Array, word: Array, taught: Array | None, soft_share: Array | float, vocabulary: Vocabulary,
    *, release_axis: bool = False,
) -> tuple[Array, Array]:  # fmt: skip
    """Cross-entropy [...] of logits [..., V] for the words [...], hard and soft, and 1 where the best is right."""
    dtype = loss_dtype(logits)
    real = _real_words(logits.astype(dtype), vocabulary)
    log_p = jax.nn.log_softmax(real, axis=-1)
    nats = -jnp.take_along_axis(log_p, word[..., None], axis=-1)[..., 0]
    if taught is not None:
        q = jax.nn.softmax(_real_words(jax.lax.stop_gradient(taught).astype(dtype), vocabulary), axis=-1)
        share = jnp.asarray(soft_share).astype(dtype)
        over = jax.nn.log_softmax(logits.astype(dtype), axis=1) if release_axis else log_p
        nats = (1.0 - share) * nats - share * jnp.sum(jnp.where(q > 0, q * over, jnp.zeros((), dtype)), axis=-1)
    return nats, (jnp.argmax(real, axis=-1) == word).astype(dtype)


def replaced_word_loss(
    logits: Inexact[Array, "B L 2"], replaced: Bool[Array, "B L"], words: CaptionWords
) -> tuple[Float[Array, " B"], Float[Array, " B"]]:
    """Returns per caption the two-way cross-entropy of its selected words (1: replaced), and the share judged right.

    Captions are weighted as in `masked_word_loss`.

    Source: docs/method.md, "Text-to-image objectives", replaced words; RaSa's replaced token detection.
    """
    dtype = loss_dtype(logits)
    log_p = jax.nn.log_softmax(logits.astype(dtype), axis=-1)
    nats = -jnp.where(replaced, log_p[..., 1], log_p[..., 0])
    right = (log_p[..., 1] > log_p[..., 0]) == replaced
    return _per_caption(nats, words), _per_caption(right.astype(dtype), words)


def _real_words(logits: Inexact[Array, "*rows V"], vocabulary: Vocabulary) -> Inexact[Array, "*rows V"]:
    """The logits, with very small ones for the entries that pad the table."""
    if logits.shape[-1] == vocabulary.size:
        return logits
    real = jnp.arange(logits.shape[-1]) < vocabulary.size
    return jnp.where(real.reshape((1,) * (logits.ndim - 1) + (-1,)), logits, jnp.finfo(logits.dtype).min / 2)


def _per_caption(values: Float[Array, "B L"], words: CaptionWords) -> Float[Array, " B"]:
    """Sums over the selected words of each caption, divided by their mean number per valid caption of its data set."""
    dtype = values.dtype
    counted = words.selected & words.valid[:, None]
    sums = jnp.sum(jnp.where(counted, values, jnp.zeros((), dtype)), axis=1)
    same_set = ((words.dataset[:, None] == words.dataset[None, :]) & words.valid[None, :]).astype(dtype)
    captions, number = jnp.sum(same_set, axis=1), same_set @ jnp.sum(counted, axis=1).astype(dtype)
    return sums * captions / jnp.maximum(number, 1.0)
