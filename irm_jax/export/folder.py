"""`--mode export`: a folder with a model's functions and all that is needed to use them without this project.

FUNCTION.stablehlo, FUNCTION.onnx   the functions, weights inside
vocab.txt, tokenizer_config.json    the tokenizer, as Hugging Face's BertTokenizer reads it
prepare.py, export.json             pictures to pixels and sentences to ids, by NumPy and PIL alone; sizes and inputs
example_FORMAT.py                   embeds pictures under sentences
README.md                           the model card
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from data_pipelines import files
from irm_jax import pretrained
from irm_jax.embedder import Embedder
from irm_jax.export import functions
from irm_jax.export.functions import FUNCTIONS, ExportError

LIMIT = 1e-3
"""Largest difference of an exported embedding's numbers, of rows of length 1, where the model computes in float32."""
BF16_LIMIT = 0.05
"""The same for a model that computes in bfloat16: ONNX has it in float32."""
_OPEN = {
    "stablehlo": """from jax import export


def load(name):
    return export.deserialize(bytearray((HERE / f"{name}.stablehlo").read_bytes())).call
""",
    "onnx": """import onnxruntime


def load(name):
    session = onnxruntime.InferenceSession(HERE / f"{name}.onnx")
    names = [one.name for one in session.get_inputs()]
    return lambda *inputs: session.run(None, dict(zip(names, inputs)))[0]
""",
}
_PACKAGES = {"stablehlo": "pip install jax flatbuffers numpy pillow", "onnx": "pip install onnxruntime numpy pillow"}
_EXAMPLES = {
    "embed_sentence": """sentence, *files = sys.argv[1:]
embed = load("embed_sentence")
rows = np.concatenate([np.asarray(embed(pixels(file), token_ids(sentence))) for file in files])
print(np.round(rows @ rows.T, 4))  # cosines of the pictures under the sentence""",
    "embed_picture": """clothes, *files = sys.argv[1:]
embed = load("embed_picture")
rows = [np.asarray(embed(pixels(file), pixels(clothes, "instruction_image_size"))) for file in files]
print(np.round(np.concatenate(rows) @ np.concatenate(rows).T, 4))  # cosines of the pictures in those clothes""",
    "search_image": """files = sys.argv[1:]
project = load("search_image")
rows = np.concatenate([np.asarray(project(pixels(file))) for file in files])
print(np.round(rows @ rows.T, 4))  # cosines of the pictures""",
    "search_sentence": """sentences = sys.argv[1:]
project = load("search_sentence")
rows = np.concatenate([np.asarray(project(token_ids(sentence))) for sentence in sentences])
print(np.round(rows @ rows.T, 4))  # cosines of the sentences""",
}
"""What the example does with the first of these that is exported."""
_ARGUMENTS = {
    "embed_sentence": '"do not change clothes" a.jpg b.jpg', "embed_picture": "clothes.jpg a.jpg b.jpg",
    "search_image": "a.jpg b.jpg", "search_sentence": '"a man in a red shirt" "a woman in blue"',
}  # fmt: skip
_CARD = """---
tags: [person-re-identification, {tags}]
---

# Instruction-guided person re-identification: exported functions

Step {step} of a run of `irm_jax`. Every function takes any number of rows B and returns rows of length 1, to be
compared by dot product; `embed_*` compare with each other, `search_sentence` with `search_image`.

{table}

Differences are the largest of any number in {rows} drawn inputs beside the model's own, {dtype}. Before a function,
pictures are read as RGB and resized to {size} (averaged; `pixels` of `prepare.py`), and sentences become {length} ids
of `vocab.txt` (`token_ids`: cleaned, lower case, WordPiece, {sep}, padded with 0). `tokenizer_config.json`
is for Hugging Face's `BertTokenizer`, whose input is to be cleaned as `token_ids` does.

```bash
{commands}
```

Say here what the model was trained on, and how well it does. Public data sets of people allow research only, and so do
models of them. The model ranks by likeness; it does not establish who somebody is.
"""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A file of the folder: its function and format, size in bytes, and difference from the model."""

    function: str
    format: str
    size: int
    difference: float

    @property
    def file(self) -> str:
        return f"{self.function}.{self.format}"

    def __str__(self) -> str:
        size = f"{self.size / 2**20:.1f} MiB"
        return f"{self.file}: {size}, differs from the model by {self.difference:.1e} at most"


def export(embedder: Embedder, place: Path, formats: Sequence[str], names: Sequence[str]) -> list[Exported]:
    """Writes the folder `place` in one step, each function in each format, and returns its function files.

    Every file is loaded again and run on drawn inputs beside the embedder.

    Raises:
      ExportError: a function gives something else than the model; nothing is written then.
      WriteError: the folder is there, or cannot be written.
    """
    variables = jax.device_get(dict(embedder.variables))
    config = embedder.model.config
    limit = LIMIT if config.dtype == "float32" else BF16_LIMIT
    done = []
    with files.folder_in_one_step(place) as folder:
        for name in names:
            inputs, expected = _drawn(embedder, name)
            for format_ in formats:
                data = functions.serialized(format_, embedder.model, variables, name)
                function = functions.loaded(format_, data, name)
                pieces = [function(*inputs), function(*(x[:1] for x in inputs))]
                difference = float(np.abs(np.concatenate(pieces) - np.concatenate([expected, expected[:1]])).max())
                one = Exported(name, format_, len(data), difference)
                if not difference <= limit:
                    raise ExportError(
                        f"{one}; more than {limit} is no rounding. Nothing is written: export the other format, and "
                        "report this with the versions in run.json"
                    )
                (folder / one.file).write_bytes(data)
                done.append(one)
                print(one, flush=True)
        for file, content in _described(embedder, done, len(expected)).items():
            (folder / file).write_bytes(content)
    return done


def _drawn(embedder: Embedder, name: str, rows: int = 3) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns drawn inputs of a function, and what the model gives for them, f32[rows, d]."""
    random, tokenizer = np.random.default_rng(0), embedder.tokenizer
    words = [entry for entry in tokenizer.entries if entry.isalpha() and len(entry) > 1] or tokenizer.entries[5:]
    sentences = [" ".join(random.choice(words, 3 + number)) for number in range(rows)]
    drawn = [
        tokenizer.encode(sentences) if dtype == np.int32 else random.integers(0, 256, (rows, *shape), np.uint8)
        for shape, dtype in functions.row_shapes(embedder.model.config, name)
    ]
    if name == "embed_sentence":
        return drawn, embedder.embed(drawn[0], sentences)
    if name == "embed_picture":
        return drawn, embedder.embed(*drawn)
    return drawn, embedder.project_images(drawn[0]) if name == "search_image" else embedder.embed_text(sentences)


def _described(embedder: Embedder, done: Sequence[Exported], rows: int) -> dict[str, bytes]:
    """Returns the other files of the folder: name -> content."""
    config, words = embedder.model.config, embedder.tokenizer
    formats = list(dict.fromkeys(one.format for one in done))
    names = list(dict.fromkeys(one.function for one in done))
    shown = next(name for name in _EXAMPLES if name in names)
    facts = {
        "model_type": "irm_jax", "step": embedder.step, "image_size": config.image_size,
        "instruction_image_size": config.instruction_image_size, "max_length": words.max_length, "sep": words.sep,
        "functions": {name: dict(FUNCTIONS[name].inputs) for name in names},
    }  # fmt: skip
    arrays = {
        "image": f"u8[B, {config.image_size[0]}, {config.image_size[1]}, 3]",
        "picture": f"u8[B, {config.instruction_image_size[0]}, {config.instruction_image_size[1]}, 3]",
        "sentence": f"i32[B, {words.max_length}]",
    }
    table = ["| file | inputs | of | output | difference |", "|---|---|---|---|---|"]
    for one in done:
        own = FUNCTIONS[one.function]
        inputs = ", ".join(f"`{name}` {arrays[kind]}" for name, kind in own.inputs)
        width = config.embedding_width if own.output == "embedding" else config.projection_width
        row = f"{inputs} | {own.says} | `{own.output}` f32[B, {width}] | {one.difference:.0e}"
        table.append(f"| `{one.file}` | {row} |")
    commands = [f"{_PACKAGES[name]}\npython example_{name}.py {_ARGUMENTS[shown]}" for name in formats]
    card = _CARD.format(
        tags=", ".join(formats), step=embedder.step, table="\n".join(table), rows=rows, dtype=config.dtype,
        size=" x ".join(map(str, config.image_size)), length=words.max_length,
        sep="closed by [SEP]" if words.sep else "not closed by [SEP]", commands="\n".join(commands),
    )  # fmt: skip
    return {
        **pretrained.tokenizer_files(words),
        "export.json": (json.dumps(facts, indent=1) + "\n").encode(),
        "prepare.py": (Path(__file__).parent / "prepare.py").read_bytes(),
        "README.md": card.encode(),
        **{f"example_{name}.py": _example(name, shown).encode() for name in formats},
    }


def _example(format_: str, shown: str) -> str:
    """Returns a program that needs this folder and public packages alone."""
    imported, _, rest = _OPEN[format_].partition("\n")
    needed = {"embed_sentence": "pixels, token_ids", "search_sentence": "token_ids"}.get(shown, "pixels")
    third = sorted(["import numpy as np", imported], key=lambda line: line.split()[1])
    return (
        f"# python example_{format_}.py {_ARGUMENTS[shown]}\nimport sys\nfrom pathlib import Path\n\n"
        + "\n".join(third)
        + f"\nfrom prepare import {needed}\n\nHERE = Path(__file__).parent\n{rest}\n\n{_EXAMPLES[shown]}\n"
    )
