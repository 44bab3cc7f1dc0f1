"""How long one query takes through the Embedder, warm, beside the forward pass of one row that it contains.

    python -m benchmarks.embed_latency                     # tiny and small, weights of random numbers
    python -m benchmarks.embed_latency --presets tiny,small,base --repeats 50

A query is a JPEG file of a person and a sentence: reading, decoding, resizing, tokenising and the model, until the
embedding is on the host. The forward pass is one jitted program on arrays that lie on the device. Both are taken in
turns, every query with another picture and sentence; the medians and their ratio are printed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from absl import app, flags

from irm_jax import run
from irm_jax.config import load
from irm_jax.embedder import SIZES, Embedder
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.export.functions import function_of
from irm_jax.parallel import mesh as mesh_lib

PRESETS = flags.DEFINE_list("presets", ["tiny", "small"], "Presets to measure.")
REPEATS = flags.DEFINE_integer("repeats", 30, "Queries of each, after five to warm up.")
MOST_RATIO, MOST_SECONDS = 1.3, 0.030
"""Limits: of every preset's ratio, and of the tiny one's query where the ratio is more."""
WORDS = ("red", "blue", "green", "white", "black", "grey", "brown", "yellow")


def opened(preset: str) -> Embedder:
    """An embedder of random weights on one device."""
    config = load("quickstart")
    config.model.update({"preset": preset})
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    found = run.untrained(config, mesh=mesh).initial_model()
    return Embedder.of(EmbeddingModel(found.model, found.variables, found.tokenizer, mesh, 64, SIZES))


def measure(preset: str, folder: Path) -> bool:
    """Prints one line, and returns whether the preset's limit holds."""
    embedder, random = opened(preset), np.random.default_rng(0)
    model, variables = embedder.model, embedder.variables
    files = []
    for number in range(REPEATS.value + 5):
        files.append(str(folder / f"{preset}{number}.jpg"))
        cv2.imwrite(files[-1], random.integers(0, 256, (256, 128, 3), np.uint8))
    sentences = [f"a person in a {WORDS[n % 8]} coat and {WORDS[n // 8 % 8]} trousers" for n in range(len(files))]

    @jax.jit
    def forward(variables: Any, image: jax.Array, ids: jax.Array) -> jax.Array:
        return function_of(model, variables, "embed_sentence")(image, ids)

    image = jax.device_put(random.integers(0, 256, (1, *model.config.image_size, 3), np.uint8))
    ids = jax.device_put(embedder.tokenizer.encode(sentences[:1]))
    times: dict[str, list[float]] = {"query": [], "forward": []}
    for file, sentence in zip(files, sentences, strict=True):
        times["query"].append(seconds(lambda: embedder.embed(file, sentence)))  # noqa: B023
        times["forward"].append(seconds(lambda: forward(variables, image, ids).block_until_ready()))
    query, alone = (float(np.median(times[name][5:])) for name in times)
    holds = query / alone <= MOST_RATIO or (preset == "tiny" and query <= MOST_SECONDS)
    limit = f"at most {MOST_RATIO}" + (f", or {MOST_SECONDS * 1e3:.0f} ms" if preset == "tiny" else "")
    print(
        f"{preset:6} query {query * 1e3:8.1f} ms, forward pass of one row {alone * 1e3:8.1f} ms: {query / alone:.2f} "
        f"({limit}: {'holds' if holds else 'MISSED'})",
        flush=True,
    )
    return holds


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main(argv: list[str]) -> None:
    del argv
    with tempfile.TemporaryDirectory() as folder:
        held = [measure(preset, Path(folder)) for preset in PRESETS.value]
    sys.exit(not all(held))


if __name__ == "__main__":
    app.run(main)
