"""A vocabulary of the training captions of built data sets, for runs without a BERT vocabulary (docs/method.md).

    python -m data_pipelines.instructions.vocabulary --data_dir SHARDS --out FOLDER [--datasets A B] [--least 2]

FOLDER/vocab.txt holds the built-in vocabulary (special tokens, letters and digits, the project's own words), then every
other word that occurs at least `--least` times in sentences of the train splits, by falling count. Rarer words are
spelled in pieces. The same data sets give the same file. Test sentences are not read.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from data_pipelines import commands, storage
from data_pipelines.dataset.reader import Dataset, dataset_names, open_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.files import write_atomically
from data_pipelines.instructions.tokenizer import MAX_WORDS, VOCABULARY, Tokenizer, clean_text

MOST_RECORDS = 200_000
"""Records read per data set; of a larger one (SYNTH-PEDES) evenly spaced ones."""
LOOKED_AT = 500
"""Records per data set that a training examines before it starts."""
MOST_SPELLED = 0.05
"""Share of a data set's words that may be spelled in pieces; beyond it the vocabulary is of another language or domain.
(The built-in one spells .13 of the words of CUHK-PEDES's captions of Market-1501 and CUHK01, BERT's .02.)"""


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a vocabulary suits sentences.

    Attributes:
      spelled: share of words without an entry of their own, which are spelled in pieces.
      cut: share of sentences that are longer than the tokenizer's length.
    """

    spelled: float
    cut: float


def sentences_of(dataset: Dataset, most_records: int = MOST_RECORDS) -> Iterator[str]:
    """Yields sentences of the train split in record order, of at most `most_records` evenly spaced records."""
    if "train" not in dataset.splits:
        return
    having = np.flatnonzero(dataset.index("train", ("sentence_count",)).sentence_count > 0)
    reader = dataset.reader("train", ("sentences",))
    for place in np.unique(np.linspace(0, len(having) - 1, min(len(having), most_records)).astype(np.int64)):
        yield from reader[int(having[place])]["sentences"]


def fit(tokenizer: Tokenizer, sentences: Iterable[str]) -> Fit | None:
    """Returns how the tokenizer's vocabulary suits these sentences; None without any."""
    own = frozenset(tokenizer.entries)
    words = spelled = count = cut = 0
    for sentence in sentences:
        found = tokenizer.words(sentence)
        words += len(found)
        spelled += sum(word not in own for word in found)
        count += 1
        cut += len(tokenizer.pieces(sentence)) > tokenizer.most_pieces
    return Fit(spelled / max(words, 1), cut / count) if count else None


def cut_to_equal(tokenizer: Tokenizer, sentences: Iterable[str]) -> tuple[int, str]:
    """Counts distinct sentences that are another one to the model, because they differ behind its last position only.

    Returns:
      How many there are, and one of them ("" for none).
    """
    groups: dict[bytes, dict[str, str]] = {}
    for sentence in dict.fromkeys(sentences):
        groups.setdefault(tokenizer.encode([sentence]).tobytes(), {}).setdefault(clean_text(sentence, None), sentence)
    longer = [list(own.values()) for own in groups.values() if len(own) > 1]
    return sum(map(len, longer)), longer[0][0] if longer else ""


def warn_of_cut(tokenizer: Tokenizer, sentences: Iterable[str], where: str) -> None:
    """Warns of the sentences that `cut_to_equal` counts; `where`: data set and split."""
    count, example = cut_to_equal(tokenizer, sentences)
    if count:
        logging.warning(
            "%s: %d different sentences are equal to the model, which reads %d words and %d ids of each: they differ "
            "behind that, for example %r. Shorten them, or raise config.model.max_length",
            where, count, MAX_WORDS, tokenizer.max_length, example,
        )  # fmt: skip


def misfits(sentences: Mapping[str, Sequence[str]], tokenizer: Tokenizer) -> list[str]:
    """Returns a message per data set, of whose sentences (by its name) the tokenizer spells too many words."""
    found = []
    for name, own in sentences.items():
        suits = fit(tokenizer, own)
        if suits is not None and suits.spelled > MOST_SPELLED:
            found.append(
                f"{name}: {suits.spelled:.0%} of the words have no entry and are spelled in pieces, and "
                f"{suits.cut:.0%} of the sentences lose their end"
            )
    return found


def entries_of(sentences: Iterable[str], least: int) -> list[str]:
    """Returns the entries of a vocabulary for these sentences, in id order."""
    builtin = Tokenizer()
    counts = collections.Counter(word for sentence in sentences for word in builtin.words(sentence))
    known = frozenset(builtin.entries)
    added = [word for word, count in counts.items() if count >= least and word not in known]
    return [*builtin.entries, *sorted(added, key=lambda word: (-counts[word], word))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 after an error that the user can mend."""
    p = argparse.ArgumentParser("python -m data_pipelines.instructions.vocabulary", description=__doc__.split("\n")[0])
    p.add_argument("--data_dir", required=True, help="folder of the built data sets")
    p.add_argument("--out", required=True, help="folder that gets vocab.txt: then --config.data.vocab=FOLDER")
    p.add_argument("--datasets", nargs="+", help="whose captions are read (default: all with sentences to train on)")
    p.add_argument("--least", type=int, default=2, help="how often a word must occur (default 2)")
    options = p.parse_args(arguments)
    file = epath.Path(options.out).expanduser() / VOCABULARY
    try:
        storage.require_library(options.out)
        if file.exists():
            raise DatasetError(f"{file} is there already, and runs may depend on it: choose another --out")
        folder = epath.Path(options.data_dir).expanduser()
        names = options.datasets or dataset_names(folder)
        read = {name: list(sentences_of(open_dataset(folder, name))) for name in names}
        found = [sentence for sentences in read.values() for sentence in sentences]
        if not found:
            raise DatasetError(f"no training sentences in {folder}: {', '.join(names) or 'no data set'}")
        entries = entries_of(found, options.least)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, "\n".join(entries) + "\n")
    except (ValueError, OSError) as error:
        logging.error("%s", error)
        return 2
    suits = fit(Tokenizer(file.parent), found)
    assert suits is not None
    print(
        f"{file}: {len(entries)} entries from {len(found):,} sentences of {', '.join(filter(read.get, read))}; "
        f"{suits.spelled:.1%} of their words are spelled"
    )
    return 0


if __name__ == "__main__":
    sys.exit(commands.run(main))
