"""Words that a vocabulary does not know, wherever sentences are read."""

import pytest

from data_pipelines.instructions import unknown_words
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.instructions.unknown_words import UnknownWordsError, check
from irm_jax.errors import UserError


@pytest.mark.parametrize(
    ("sentence", "known", "unknown"),
    [
        ("a man in red", 4, ()),
        ("穿红衣服的女人", 0, ("穿红衣服的女人",)),
        ("a man 穿红 in a zebra 😀 hat", 5, ("穿红", "zebra", "😀")),  # spelled in letters, no vocabulary word
        ("a manteau", 1, ("manteau",)),  # man + t + e + a + u
        ("blouses", 1, ()),
        ("", 0, ()),
        ("... !?", 0, ()),
        ("a" * 101, 0, ("a" * 101,)),  # WordPiece gives up on longer words
    ],
)
def test_known_and_unknown_words(sentence, known, unknown):
    assert Tokenizer().known_words(sentence) == (known, unknown)


def test_a_sentence_without_a_known_word_is_an_error_and_others_are_reported_once(caplog):
    words = Tokenizer()
    with pytest.raises(
        UnknownWordsError, match=r"split test: the sentence '戴黑帽子的男士' has no word.*'戴黑帽子的男士'"
    ):
        check(words, ["a man", "戴黑帽子的男士"], "data set X, split test")
    with pytest.raises(UserError, match=r"the sentence '...' has no word.*it has no words"):
        check(words, ["..."])
    assert "does not know" not in caplog.text
    check(words, ["a red zebra", "a man", "a red zebra"], "here")
    assert "here: words that the vocabulary 'builtin' does not know, in 1 of 2 sentences: 'zebra'" in caplog.text
    caplog.clear()
    check(words, ["a red zebra"])
    assert not caplog.text
    check(words, [f"a red {'x' * n}" for n in range(2, 12)])
    assert f"and {10 - unknown_words.LISTED} more" in caplog.text


def test_punctuation_that_has_an_entry_is_no_word(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n%\n衣\nred\n")
    words = Tokenizer(tmp_path)
    assert words.known_words("%") == (0, ())
    assert words.known_words("衣服") == (1, ("服",))
    assert words.known_words("red & 100 %") == (1, ("&", "100"))
