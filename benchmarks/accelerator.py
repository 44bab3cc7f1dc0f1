"""What one accelerator does with this code: one command for whoever has a chip, ten minutes at most.

Usage: python -m benchmarks.accelerator [--rows 256] [--minutes 10] [--json FILE] [--only step,torch] [--small]

Sections, in order; a section that does not fit into the time left, or lacks a package, is skipped, and the table says
so. `--small` runs all of it with small shapes, to try the command on a CPU.

    step        the training step of configs/irm_pp.py in bfloat16, as IRM alone and whole, with and without cuDNN's
                flash attention (where the platform has it): ms, images/s, MFU, peak memory
    embedding   images under one sentence, as an evaluation embeds them, pictures on the device already
    ranking     exact ranking at the size of MSMT17, and of 20,000 queries against 1,000,000 images
    torch       a ViT-B/16 at 256x128, forward and training step, beside PyTorch (bfloat16 autocast, torch.compile,
                its fused attention) on the same device; needs torch and timm (`pip install -e '.[parity]'`)

MFU counts the products of the model (those that `model.remat` computes twice once) over the chip's published peak
(irm_jax/compile/chips.py). Every figure is the median of rounds within this process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from data_pipelines.files import write_json
from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.compile import analytic_flops, chips
from irm_jax.config import load
from irm_jax.models.plain_forms import plain_forms
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel.devices import enable_compilation_cache
from irm_jax.run import planned

DEVICE = jax.devices()[0]
CHIP = chips.chip_of(DEVICE.device_kind)
VIT_SIZE, RATE = (256, 128), 1e-6


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, and its figures by name."""

    section: str
    what: str
    figures: dict[str, float | str]


@dataclasses.dataclass(frozen=True)
class Options:
    """Sizes of a run. `gallery`: (name, queries, images, width) of the rankings."""

    rows: int
    rounds: int
    repeats: int
    small: bool
    gallery: tuple[tuple[str, int, int, int], ...]


def options_of(arguments: argparse.Namespace) -> Options:
    if arguments.small:
        return Options(48, 2, 1, True, (("small", 64, 1_000, 32),))
    sizes = (("MSMT17", 11_659, 82_161, 1_536), ("a million", 20_000, 1_000_000, 256))
    return Options(arguments.rows, 3, 10, False, sizes)


def seconds_of(call: Callable[[], Any], options: Options) -> float:
    """The median over the rounds of the seconds of one call; a first one is not counted."""
    jax.block_until_ready(call())
    found = []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        for _ in range(options.repeats):
            result = call()
        jax.block_until_ready(result)
        found.append((time.perf_counter() - begin) / options.repeats)
    return statistics.median(found)


def rates(seconds: float, rows: int, flops: float | None, kind: str = "bf16") -> dict[str, float | str]:
    """ms, images/s, and the MFU where the chip's peak is known."""
    figures: dict[str, float | str] = {"ms": 1e3 * seconds, "images/s": rows / seconds}
    if flops is not None:
        figures["TFLOP/s"] = flops / seconds / 1e12
        figures["MFU"] = flops / seconds / getattr(CHIP, kind) if CHIP else "chip unknown"
    return figures


def configuration(name: str, options: Options) -> ConfigDict:
    """configs/irm_pp.py, or with the name "irm" what is left of it as IRM, on one device."""
    from benchmarks.paper_step import VARIANTS

    config: ConfigDict = load("irm_pp")
    config.model.dtype = "bfloat16"
    config.data.batch_size, config.data.batch_blocks = options.rows, 1
    if options.small:
        config.model.preset, config.model.scan_layers, config.model.fusion_depth = "tiny", False, 1
        config.memory_bank.size = config.text_to_image.queue_size = 256
    config.update_from_flattened_dict(VARIANTS[name])
    return config


def steps(options: Options) -> Iterator[Row]:
    """The training step by what it has of IRM++, and with plain attention."""
    from benchmarks.paper_step import make_step
    from irm_jax.models import attention

    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, [DEVICE])
    forms = [("", contextlib.nullcontext)]
    if attention.takes_fused(jnp.dtype("bfloat16"), 64):
        forms.append((", plain attention", plain_forms))
    for name in ("irm", "irm_pp"):
        for words, form in forms:
            with form():
                step = make_step(configuration(name, options), mesh)
            with jax.set_mesh(mesh):
                seconds = seconds_of(lambda step=step: step.run(1), options)
            figures = rates(seconds, options.rows, None)
            if step.ideal_seconds:
                figures["MFU"] = step.ideal_seconds / seconds
            figures["peak GiB"] = step.compiled.memory_analysis().peak_memory_in_bytes / chips.GIB
            yield Row("step", f"{name}{words}, {options.rows} rows", figures)


def embedding(options: Options) -> Iterator[Row]:
    """Images under the neutral sentence; the sentence is encoded before."""
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, [DEVICE])
    run = planned(configuration("irm", options), mesh)
    state = run.fresh_state()
    model = run.embedding_model({"params": state.params, "batch_stats": state.batch_stats})
    images = random_images(options.rows, run.model.config.image_size)
    encode, _, edit, take = model.functions()
    table, index = model.instructions([NEUTRAL_SENTENCE]), np.zeros(options.rows, np.int32)
    with jax.set_mesh(mesh):
        asked, variables = take(table, index), model.variables

        def embed() -> Any:
            return edit(variables, encode(variables, images), asked)

        flops = analytic_flops.count(jax.make_jaxpr(embed)()).total()
        seconds = seconds_of(embed, options)
    yield Row("embedding", f"{options.rows} images", rates(seconds, options.rows, flops))


def rankings(options: Options) -> Iterator[Row]:
    """Exact ranking with mAP, embeddings on the host at first, beside the product of queries and gallery alone."""
    from irm_jax.evaluation.case import prepare
    from irm_jax.evaluation.protocols import MARKET
    from irm_jax.evaluation.ranking.scores import EmbeddingScores
    from irm_jax.evaluation.records import Records

    random = np.random.default_rng(0)
    product = jax.jit(lambda q, g: jnp.einsum("qd,gd->qg", q, g, precision="highest").max())
    for name, queries, images, width in options.gallery:
        people = max(images // 27, 1)
        sides = []
        for count in (queries, images):
            columns = {"identity": random.integers(0, people, count, np.int32)}
            columns["camera"] = random.integers(0, 15, count, np.int32)
            sides.append((random.standard_normal((count, width), np.float32), Records.of(**columns)))
        (query, of_query), (gallery, of_gallery) = sides
        case, scores = prepare(MARKET, of_query, of_gallery), EmbeddingScores(query, gallery)
        case.rank(scores)  # compiles, and places the gallery
        begin = time.perf_counter()
        case.rank(scores)
        whole = time.perf_counter() - begin
        placed, part = jnp.asarray(gallery), jnp.asarray(query[:256])
        alone = seconds_of(lambda part=part, placed=placed: product(part, placed), options) * queries / len(part)
        figures: dict[str, float | str] = {"s": whole, "over the product": whole / alone}
        yield Row("ranking", f"{name}: {queries:,} x {images:,} x {width:,}", figures)


def beside_torch(options: Options) -> Iterator[Row]:
    """The same ViT-B/16 on both sides, from random weights; each computes the class token's features."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and DEVICE.platform != "cpu":
        raise ModuleNotFoundError("a torch that sees this device")
    depth, rows = (1 if options.small else 12), options.rows
    found = {"jax": vit_passes(depth, rows, options)}
    model = VisionTransformer(img_size=VIT_SIZE, depth=depth, num_classes=0, global_pool="token").to(device)
    rule = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    pixels = torch.randn(rows, 3, *VIT_SIZE, device=device)
    called = model if options.small else torch.compile(model)

    def forward() -> Any:
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16):
            return called(pixels)

    def step() -> Any:
        rule.zero_grad()
        with torch.autocast(device, torch.bfloat16):
            loss = (called(pixels).float() ** 4).mean()
        loss.backward()
        rule.step()
        return loss

    def waited(call: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> None:
            call()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    found["torch" if options.small else "torch.compile"] = {
        name: seconds_of(waited(call), options) for name, call in (("forward", forward), ("step", step))
    }
    for side, passes in found.items():
        for name, seconds in passes.items():
            figures = {**rates(seconds, rows, None), "times jax's": seconds / found["jax"][name]}
            yield Row("torch", f"ViT-B/16, {depth} layers, {name}, {side}", figures)


def vit_passes(depth: int, rows: int, options: Options) -> dict[str, float]:
    """Seconds of a forward pass and a training step of our ViT in bfloat16."""
    from irm_jax.models.encoders.vit_module import ViTModule
    from irm_jax.models.transformer import BlockConfig

    encoder = ViTModule(
        BlockConfig(width=768, heads=12, dtype=jnp.bfloat16), depth, VIT_SIZE, 16, 16, part_tokens=0, scan_layers=True
    )
    images, optimizer = random_images(rows, VIT_SIZE), optax.adamw(RATE)

    def features(params: Any) -> jax.Array:
        return encoder.apply({"params": params}, images, train=False).cls

    params = jax.jit(lambda key: encoder.init(key, images, train=False)["params"])(jax.random.key(0))
    held = [(jax.tree.map(jnp.copy, params), optimizer.init(params))]

    @jax.jit
    def step(held: Any) -> Any:
        params, moments = held
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean(features(p).astype(jnp.float32) ** 4))(params)
        with jax.numpy_dtype_promotion("standard"):
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

    def run() -> Any:
        held[0], loss = step(held[0])
        return loss

    forward = jax.jit(features)
    return {"forward": seconds_of(lambda: forward(params), options), "step": seconds_of(run, options)}


def random_images(rows: int, size: tuple[int, int]) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, (rows, *size, 3), np.uint8))


SECTIONS = {"step": steps, "embedding": embedding, "ranking": rankings, "torch": beside_torch}


def measure(names: list[str], options: Options, minutes: float) -> Iterator[Row]:
    """Runs the sections while there is time; one that fails or finds none left is a row that says so."""
    start = time.monotonic()
    for name in names:
        try:
            for row in SECTIONS[name](options):
                yield row
                if time.monotonic() - start > 60 * minutes:
                    yield Row(name, "the rest", {"skipped": f"{minutes:g} minutes are over"})
                    break
        except ModuleNotFoundError as error:
            yield Row(name, "all", {"skipped": str(error)})
        except Exception as error:  # such as a batch that does not fit: the other sections still count
            yield Row(name, "the rest", {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"})
        if time.monotonic() - start > 60 * minutes:
            break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="rows of a batch")
    parser.add_argument("--minutes", type=float, default=10, help="after which no further section begins")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--json", type=Path, help="where the figures are written")
    parser.add_argument("--small", action="store_true", help="small shapes, to try the command itself")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - SECTIONS.keys():
        parser.error(f"unknown sections {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    flags.FLAGS.mark_as_parsed()
    enable_compilation_cache(load("irm_pp"))
    print(f"{DEVICE.device_kind}, jax {jax.__version__}" + (", small shapes" if arguments.small else ""))
    rows = []
    for row in measure(names, options_of(arguments), arguments.minutes):
        rows.append(row)
        cells = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name}: {value}"
                 for name, value in row.figures.items())  # fmt: skip
        print(f"| {row.section} | {row.what} | {', '.join(cells)} |", flush=True)
    if arguments.json:
        device = {"device": DEVICE.device_kind, "jax": jax.__version__, "small": arguments.small}
        write_json(arguments.json, {**device, "rows": [dataclasses.asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
