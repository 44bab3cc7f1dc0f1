"""Sentences to token ids: the paper's text cleaning, then WordPiece (docs/method.md, encoders)."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import tokenizers
from etils import epath

from data_pipelines.errors import UserError

BUILTIN_VOCABULARY = pathlib.Path(__file__).parent / "vocab" / "procedural.txt"
VOCABULARY = "vocab.txt"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MAX_WORDS = 50
_DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")


class VocabularyError(UserError, ValueError):
    """Reports a vocabulary that is missing or unusable; the message names the file."""


def clean_text(text: str, max_words: int | None = MAX_WORDS) -> str:
    """Returns a sentence as the model reads it; `max_words` None: uncut.

    Lower-case; `,.'!?"()*#:;~` deleted; `-` and `/` become spaces; `<person>` becomes `person`; spaces collapsed; the
    first 50 words kept. (The released code's `pre_caption` does the same.)
    """
    text = text.lower().translate(_DELETED).replace("-", " ").replace("/", " ").replace("<person>", "person")
    return " ".join(re.split(r"\s+", text.strip())[:max_words])


def read_vocabulary(vocab: str | pathlib.Path) -> list[str]:
    """Returns the entries of a vocabulary in id order.

    Args:
      vocab: "builtin", or a directory that holds `vocab.txt` (one entry per line, as in BERT models).

    Raises:
      VocabularyError: the file is missing, an entry is there twice, a special token is missing, or [PAD] is not entry
        0.
    """
    path = epath.Path(BUILTIN_VOCABULARY if str(vocab) == "builtin" else epath.Path(vocab) / VOCABULARY)
    if not path.is_file():
        raise VocabularyError(f"no vocabulary at {path}: pass 'builtin' or a directory that holds vocab.txt")
    try:
        entries = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{path} is no text in UTF-8 that can be read ({error}): get it again") from error
    if entries[-1] == "":
        entries.pop()
    entries = [entry.rstrip("\r") for entry in entries]
    if len(set(entries)) != len(entries):
        seen: set[str] = set()
        twice = next(entry for entry in entries if entry in seen or seen.add(entry))  # type: ignore[func-returns-value]
        raise VocabularyError(f"{path} holds the entry {twice!r} twice; token ids would shift")
    missing = [token for token in SPECIAL_TOKENS if token not in entries]
    if missing or entries[0] != "[PAD]":
        raise VocabularyError(
            f"{path} must hold {SPECIAL_TOKENS} with [PAD] first; missing: {missing}, first: {entries[0]!r}"
        )
    return entries


class Tokenizer:
    """WordPiece tokenizer with a fixed output length.

    Picklable: a worker receives the vocabulary's path and the length.

    Attributes:
      pad_id, unk_id, cls_id, sep_id, mask_id: ids of the special tokens; `pad_id` is 0.
      entries: the vocabulary in id order.
      vocab, max_length, sep: as given.
      known_words: sentence -> (number of words that the vocabulary knows, the others), see `unknown_words.check`.
      reported: sentences of whose unknown words the user was told.
    """

    def __init__(self, vocab: str | pathlib.Path = "builtin", max_length: int = 70, sep: bool = True):
        """Reads the vocabulary.

        Args:
          vocab: see `read_vocabulary`.
          max_length: ids per sentence, [CLS] and [SEP] included; at least 3.
          sep: whether [SEP] ends a sentence, as in BERT. The tokenizers of ALBEF, RaSa and the released IRM override
            `build_inputs_with_special_tokens` and leave it out.

        Raises:
          VocabularyError: see `read_vocabulary`.
          ValueError: `max_length` is below 3.
        """
        if max_length < 3:
            raise ValueError(
                f"max_length {max_length} leaves no room for a word between [CLS] and [SEP]; use 3 or more"
            )
        self.vocab, self.max_length, self.sep = str(vocab), max_length, sep
        self.entries = read_vocabulary(vocab)
        ids = {entry: i for i, entry in enumerate(self.entries)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (ids[token] for token in SPECIAL_TOKENS)
        # No [CLS]/[SEP] post-processing here: `_ids` adds them after truncation, so that [SEP] is never cut off.
        self._pieces = tokenizers.Tokenizer(tokenizers.models.WordPiece(ids, unk_token="[UNK]"))
        self._pieces.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
        self._pieces.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
        self._cached_ids = functools.lru_cache(maxsize=65536)(self._ids)
        self.known_words = functools.lru_cache(maxsize=65536)(self._known_words)
        self.reported: set[str] = set()

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str, int, bool]]:
        return Tokenizer, (self.vocab, self.max_length, self.sep)

    @property
    def most_pieces(self) -> int:
        """Word pieces that a sentence may have; further ones are cut off."""
        return self.max_length - 1 - self.sep

    def fingerprint(self) -> str:
        """Returns a hash of the entries in their order."""
        return hashlib.sha256("\n".join(self.entries).encode()).hexdigest()[:16]

    @property
    def vocab_size(self) -> int:
        return len(self.entries)

    def words(self, sentence: str) -> list[str]:
        """Returns the words of a sentence as they are looked up in the vocabulary."""
        text = self._pieces.normalizer.normalize_str(clean_text(sentence))
        return [word for word, _ in self._pieces.pre_tokenizer.pre_tokenize_str(text)]

    def pieces(self, sentence: str) -> list[int]:
        """Returns the ids of all pieces of a sentence, not truncated, without [CLS] and [SEP]."""
        # One sentence at a time: encode_batch starts threads, which do not survive a fork of the input workers.
        return list(self._pieces.encode(clean_text(sentence)).ids)

    def _known_words(self, sentence: str) -> tuple[int, tuple[str, ...]]:
        text = clean_text(sentence)
        encoding = self._pieces.encode(text)
        words: dict[int | None, list[int]] = {}
        for piece, word in enumerate(encoding.word_ids):
            words.setdefault(word, []).append(piece)
        known, end = 0, -1
        unknown: list[str] = []
        for pieces in words.values():
            lengths = [len(encoding.tokens[piece].removeprefix("##")) for piece in pieces]
            spelled = len(pieces) > 1 and 2 * lengths.count(1) > sum(lengths)
            (start, _), (_, stop) = encoding.offsets[pieces[0]], encoding.offsets[pieces[-1]]
            if spelled or encoding.ids[pieces[0]] == self.unk_id:
                if start == end:  # ideographs stand for words of their own
                    unknown[-1] += text[start:stop]
                else:
                    unknown.append(text[start:stop])
                end = stop
            else:
                known += any(letter.isalnum() for letter in text[start:stop])
        return known, tuple(unknown)

    def _ids(self, sentence: str) -> np.ndarray:
        pieces = self.pieces(sentence)[: self.most_pieces]
        ids = [self.cls_id, *pieces, self.sep_id] if self.sep else [self.cls_id, *pieces]
        row = np.full(self.max_length, self.pad_id, np.int32)
        row[: len(ids)] = ids
        return row

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """Returns i32[n, max_length]: [CLS] pieces [SEP] (where `sep`), then 0; longer sentences are truncated.

        Raises:
          TypeError: one string instead of a list of them (it would be read letter by letter).
        """
        if isinstance(sentences, str):
            raise TypeError("encode takes a list of sentences; wrap the one sentence in a list")
        rows = [self._cached_ids(sentence) for sentence in sentences]
        return np.stack(rows) if rows else np.zeros((0, self.max_length), np.int32)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of one row of ids, special tokens left out and word pieces joined."""
        hidden = {self.pad_id, self.cls_id, self.sep_id}
        return " ".join(self.entries[int(i)] for i in ids if int(i) not in hidden).replace(" ##", "")
