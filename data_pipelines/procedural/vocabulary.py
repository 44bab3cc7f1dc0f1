"""Makes the built-in vocabulary `data_pipelines/instructions/vocab/procedural.txt`.

    python -m data_pipelines.procedural.vocabulary

It holds every word the project's own sentences can contain, the words people use of people, and all letters and
digits with their continuations, so that no sentence in plain letters has an unknown token.
"""

from __future__ import annotations

import argparse
import pathlib
import string
import sys

from data_pipelines import commands, tasks
from data_pipelines.files import write_atomically
from data_pipelines.instructions import sentences, tokenizer
from data_pipelines.procedural import outfits, people

PLAIN_WORDS = """
 adult age ankle arm arms at back background bald bare barefoot beard belt big black blonde blouse blue boots both boy
bright brown camera cardigan carried carry clothing coat collar colour coloured color colored curly cyan dark denim
dress female feet foot from front girl glasses glove gold gray grey hand handbag hands he head heel height her hers
his hold holding hood hoodie infrared is it jacket jeans khaki knee large left leg legs light long looking male man
mask men middle modality navy neck night old olive on one orange other outfit over pack patterned phone pink ponytail
purse right sandals scarf she shorts short shoulder shoulders side skin skirt small sneakers socks suit suitcase
sunglasses sweater tan their them they this tie tight to towards turned two umbrella vest violet waist walking walks
watch wear wears which white who woman women years yellow young
"""
CONTINUATIONS = ["s", "es", "ed", "ing", "er", "est", "ly", "ish", "y", "ie", "n"]


def entries() -> list[str]:
    """Returns the vocabulary in id order: special tokens, letters and digits, words (sorted), continuations."""
    slots = [*outfits.BASE_SLOTS, *outfits.EXTRA_SLOTS.values()]
    texts = [
        *sentences.words(),
        *[f"{slot.name} {' '.join(slot.values)}" for slot in slots],
        *people.HAIR_COLOURS,
        *[spec.sentence or "" for spec in tasks.TASKS.values()],
        tasks.NEUTRAL_SENTENCE,
        PLAIN_WORDS,
    ]
    words = {word for text in texts for piece in text.split() for word in tokenizer.clean_text(piece).split()}
    letters = [*string.ascii_lowercase, *string.digits]
    continuations = [f"##{piece}" for piece in [*letters, *CONTINUATIONS]]
    ordered = [*tokenizer.SPECIAL_TOKENS, *letters, *sorted(words - set(letters)), *continuations]
    return list(dict.fromkeys(ordered))


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes the built-in vocabulary.")
    parser.add_argument("--out", type=pathlib.Path, default=tokenizer.BUILTIN_VOCABULARY, help="the file to write")
    path: pathlib.Path = parser.parse_args().out
    write_atomically(path, "\n".join(entries()) + "\n")
    print(f"{len(entries())} entries in {path}")


if __name__ == "__main__":
    sys.exit(commands.run(main))
