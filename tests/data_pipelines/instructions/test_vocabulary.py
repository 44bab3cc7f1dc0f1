"""A vocabulary made of training captions: its words, when it is suggested, and when it is not."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.instructions import vocabulary
from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.instructions.vocabulary import entries_of, fit, sentences_of
from irm_jax import run
from irm_jax.config import keys
from irm_jax.errors import ConfigError


def test_entries_are_the_built_in_ones_and_what_stands_there_often_enough():
    sentences = ["A zebra-striped T-shirt, zebra!", "striped sweatshirt", "a red café zebra", "the CAFÉ", "quokka"]
    builtin = Tokenizer().entries
    entries = entries_of(sentences, least=2)
    assert entries[: len(builtin)] == builtin
    assert entries[len(builtin) :] == ["zebra", "cafe"]  # "striped" is known; by count, then by letters
    assert entries_of(sentences, least=1)[-2:] == ["quokka", "sweatshirt"]


def test_how_a_vocabulary_suits_sentences():
    words = Tokenizer(max_length=7)  # five pieces
    found = fit(words, ["a red hat", "a red qqq", "a red qqqq"])
    assert found is not None
    assert (found.spelled, found.cut) == (pytest.approx(2 / 9), pytest.approx(1 / 3))
    assert fit(words, []) is None


def test_only_training_sentences_are_read_and_of_many_evenly_spaced_ones(tiny_data):
    dataset = tiny_data[1]["tiny_t2i"]
    everything = list(sentences_of(dataset))
    records = int(np.sum(dataset.index("train").sentence_count > 0))
    assert len(everything) == 2 * records
    chosen = (0, (records - 1) // 2, records - 1)
    few = [everything[2 * number + which] for number in chosen for which in (0, 1)]
    assert list(sentences_of(dataset, 3)) == few
    assert list(sentences_of(tiny_data[1]["tiny_trad"])) == []


def test_the_command_makes_what_a_training_asks_for(tiny_data, tmp_path, capsys, caplog):
    folder, datasets = tiny_data
    config = keys.get_config()
    config.data.dir = str(folder)
    data = SimpleNamespace(datasets=datasets, plan=SimpleNamespace(datasets=("tiny_t2i", "tiny_trad")))
    data.tokenizer = Tokenizer(max_length=20)
    with pytest.raises(ConfigError, match=r"tiny_t2i: \d+% of the words have no entry .*--config.data.vocab=FOLDER"):
        run.build(config, data=data).check_vocabulary()

    out = tmp_path / "words"
    arguments = ["--data_dir", str(folder), "--out", str(out), "--least", "1"]
    assert vocabulary.main(arguments) == 0
    assert "0.0% of their words are spelled" in capsys.readouterr().out
    config.data.vocab, data.tokenizer = str(out), Tokenizer(out, max_length=20)
    run.build(config, data=data).check_vocabulary()
    assert "does not suit" not in caplog.text
    first = (out / "vocab.txt").read_bytes()
    assert vocabulary.main(arguments) == 2  # runs may depend on the existing one
    (out / "vocab.txt").unlink()
    assert vocabulary.main(arguments) == 0
    assert (out / "vocab.txt").read_bytes() == first

    sparse = tmp_path / "sparse"
    assert vocabulary.main([*arguments[:3], str(sparse), "--datasets", "tiny_li", "--least", "99"]) == 0
    config.data.vocab, data.tokenizer = str(sparse), Tokenizer(sparse, max_length=20)
    run.build(config, data=data).check_vocabulary()  # the user's own: a warning
    assert "does not suit" in caplog.text
    assert vocabulary.main([*arguments[:3], str(tmp_path / "no"), "--datasets", "tiny_trad"]) == 2
    assert "no training sentences" in caplog.text


def test_sentences_that_differ_behind_the_last_position_are_counted(caplog):
    words = Tokenizer(max_length=5)  # three pieces
    said = ["a red hat", "a red hat and shoes", "A red hat, and a bag", "a blue hat", "a red hat"]
    assert vocabulary.cut_to_equal(words, said) == (3, "a red hat")
    assert vocabulary.cut_to_equal(Tokenizer(), said) == (0, "")
    # Beyond 50 words the text is cut whatever the tokenizer's length; "A" and "a" are one word.
    long = " ".join(["red"] * 50)
    assert vocabulary.cut_to_equal(Tokenizer(max_length=99), [f"{long} hat", f"{long} bag", f"{long} HAT"])[0] == 2
    vocabulary.warn_of_cut(words, said, "mine, split query")
    assert "mine, split query: 3 different sentences are equal to the model" in caplog.text
