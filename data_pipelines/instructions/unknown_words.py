"""Words that the vocabulary does not know: named with their sentence; a sentence without one known word is an error."""

from __future__ import annotations

from collections.abc import Sequence

from absl import logging

from data_pipelines.errors import UserError
from data_pipelines.instructions.tokenizer import Tokenizer

LISTED = 5
"""Sentences that one message lists."""


class UnknownWordsError(UserError, ValueError):
    """Reports a sentence without a word that the vocabulary knows; the message names both."""


def check(tokenizer: Tokenizer, sentences: Sequence[str], where: str = "", *, warn: bool = True) -> None:
    """Checks that the vocabulary knows the words of sentences that a model is about to read.

    Two sentences without a known word are the same one to the model. A word is known if it has an entry, or is built
    of pieces and at most half of its letters are pieces of their own.

    Args:
      tokenizer: the model's.
      sentences: as they are given to `Tokenizer.encode`.
      where: where they come from, for the messages ("data set NAME, split test").
      warn: whether to warn of the unknown words of other sentences; of each sentence once.

    Raises:
      UnknownWordsError: a sentence has no known word.
    """
    partly: list[tuple[str, tuple[str, ...]]] = []
    place = f"{where}: " if where else ""
    distinct = list(dict.fromkeys(sentences))
    for sentence in distinct:
        known, unknown = tokenizer.known_words(sentence)
        if not known:
            words = f"unknown are {_quoted(unknown)}" if unknown else "it has no words"
            raise UnknownWordsError(
                f"{place}the sentence {sentence!r} has no word that the vocabulary {tokenizer.vocab!r} knows "
                f"({words}): the model would read nothing. Use other words, or the vocabulary of the training"
            )
        if unknown and sentence not in tokenizer.reported:
            partly.append((sentence, unknown))
    if partly and warn:
        tokenizer.reported.update(sentence for sentence, _ in partly)
        lines = "; ".join(f"{_quoted(words)} in {sentence!r}" for sentence, words in partly[:LISTED])
        more = f"; and {len(partly) - LISTED} more" if len(partly) > LISTED else ""
        logging.warning(
            "%swords that the vocabulary %r does not know, in %d of %d sentences: %s%s",
            place, tokenizer.vocab, len(partly), len(distinct), lines, more,
        )  # fmt: skip


def _quoted(words: Sequence[str]) -> str:
    return ", ".join(repr(word) for word in words)
