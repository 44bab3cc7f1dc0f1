"""Text cleaning and WordPiece."""

import pickle

import numpy as np
import pytest
import transformers

from data_pipelines import tasks
from data_pipelines.instructions import tokenizer
from data_pipelines.instructions.tokenizer import Tokenizer, clean_text
from data_pipelines.procedural import vocabulary
from data_pipelines.procedural.benchmark import Benchmark


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Don't change: CLOTHES!", "dont change clothes"),
        ("a T-shirt/top  and\tblack\n shoes.", "a t shirt top and black shoes"),
        ('<person> (walking) #3 *now* ~; "x"', "person walking 3 now x"),
        ("", ""),
        (" ".join(["w"] * 60), " ".join(["w"] * 50)),
    ],
)
def test_clean_text(text, cleaned):
    assert clean_text(text) == cleaned


def test_rows_are_padded_truncated_and_closed():
    words = Tokenizer(max_length=6)
    ids = words.encode(["a man", "a man with a red hat and a bag", ""])
    assert ids.shape == (3, 6)
    assert ids.dtype == np.int32
    assert ids[0].tolist() == [words.cls_id, *ids[0, 1:3], words.sep_id, 0, 0]
    assert ids[1, -1] == words.sep_id
    assert (ids[1] != 0).all()
    assert ids[2].tolist() == [words.cls_id, words.sep_id, 0, 0, 0, 0]
    assert words.encode([]).shape == (0, 6)
    assert [words.pad_id, words.unk_id, words.cls_id, words.sep_id, words.mask_id] == [0, 1, 2, 3, 4]


def test_sentences_of_the_releases_have_no_sep():
    """ALBEF's, RaSa's and the released IRM's `build_inputs_with_special_tokens` gives [CLS] and the words alone."""
    words, theirs = Tokenizer(max_length=6), Tokenizer(max_length=6, sep=False)
    long = "a man with a red hat and a bag"
    ids = theirs.encode(["a man", long])
    assert ids[0].tolist() == [*words.encode(["a man"])[0, :3], 0, 0, 0]
    assert ids[1].tolist() == [theirs.cls_id, *theirs.pieces(long)[:5]]  # one word more than with [SEP]
    assert not (ids == theirs.sep_id).any()
    assert not pickle.loads(pickle.dumps(theirs)).sep


def test_encoding_again_is_safe_from_changes_to_the_first():
    words = Tokenizer()
    first = words.encode(["red hat"])
    expected = first.copy()
    first[:] = 7
    np.testing.assert_array_equal(words.encode(["red hat"]), expected)


def test_no_project_sentence_is_unknown_or_split():
    words, whole = Tokenizer(), set(Tokenizer().entries)
    benchmark = Benchmark(train_people=12, test_people=6, extras=("shoes", "hat", "sleeves"))
    sentences = [spec.sentence for spec in tasks.TASKS.values() if spec.sentence] + [tasks.NEUTRAL_SENTENCE]
    for task in ("t2i", "li"):
        for shots in benchmark.shots(task).values():
            sentences += [sentence for shot in shots for sentence in benchmark.sentences(shot)]
    assert len(sentences) > 500
    assert not (words.encode(sentences) == words.unk_id).any()
    missing = {word for sentence in sentences for word in clean_text(sentence).split()} - whole
    assert not missing
    assert (words.encode(sentences)[:, -1] == 0).all(), "a sentence of the benchmark was truncated"


def test_plain_letters_are_never_unknown():
    words = Tokenizer()
    ids = words.encode(["Zyxwvut qwerty9 blouses 1234567890 café"])
    assert words.unk_id not in ids
    assert words.decode(ids[0]) == "zyxwvut qwerty9 blouses 1234567890 cafe"


def test_the_vocabulary_file_is_the_generated_one():
    assert tokenizer.read_vocabulary("builtin") == vocabulary.entries()
    assert len(vocabulary.entries()) < 3000


def test_agrees_with_the_bert_tokenizer_on_a_directory(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[unused0]", *vocabulary.entries()[1:]]) + "\n")
    ours, theirs = Tokenizer(tmp_path, max_length=16), transformers.BertTokenizerFast.from_pretrained(tmp_path)
    assert ours.mask_id == theirs.mask_token_id == 5
    sentences = ["a tall person in blouses", "do not change clothes", "wearing " * 30]
    expected = theirs(sentences, padding="max_length", truncation=True, max_length=16)["input_ids"]
    np.testing.assert_array_equal(ours.encode(sentences), expected)
    assert ours.vocab_size == len(vocabulary.entries()) + 1


def test_pickles_small():
    words = Tokenizer(max_length=9)
    data = pickle.dumps(words)
    assert len(data) < 500
    np.testing.assert_array_equal(pickle.loads(data).encode(["hat"]), words.encode(["hat"]))


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(tokenizer.VocabularyError, match=r"vocab\.txt"):
        Tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n")
    with pytest.raises(ValueError, match=r"\[MASK\]"):
        Tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\nred\n")
    with pytest.raises(ValueError, match="'red' twice"):
        Tokenizer(tmp_path)
    (tmp_path / "vocab.txt").write_bytes("[PAD]\nrött\n".encode("latin-1"))
    with pytest.raises(tokenizer.VocabularyError, match=r"vocab\.txt is no text in UTF-8"):
        Tokenizer(tmp_path)
    with pytest.raises(ValueError, match="max_length"):
        Tokenizer(max_length=2)
    with pytest.raises(TypeError, match="list"):
        Tokenizer().encode("red hat")
