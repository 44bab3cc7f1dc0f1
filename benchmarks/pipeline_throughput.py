"""Images per second of the input pipeline beside a PyTorch DataLoader that does the same work with PIL.

    python -m benchmarks.pipeline_throughput [--workers 0,2] [--rounds 3]

Both sides read JPEGs, decode, jitter, resize to 256x128, flip, pad + crop, erase, and hand u8 batches to a consumer:
ours from shards through PK sampling and Grain, the other from files through `Image.open` and the operations torchvision
applies to PIL images, written out here. Last, the time of batches with a second view of every image beside one view.
The images are made here; before any timing the two chains are compared on equal parameters. Needs the `convert` extra
(torch, pillow).
"""

from __future__ import annotations

import functools
import io
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from typing import cast

import cv2
import numpy as np
import PIL.Image
import PIL.ImageEnhance
import PIL.ImageOps
import simplejpeg
import torch
import torch.utils.data
from absl import app, flags

from data_pipelines.batches import augment, layout
from data_pipelines.batches.make import BatchOptions
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.batches.training_data import TrainingData
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import Dataset, open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset
from data_pipelines.images import decode
from data_pipelines.instructions.tokenizer import Tokenizer

_WORKERS = flags.DEFINE_list("workers", ["0", "2"], "Processes that make batches, for both sides.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Measurements of each figure, alternating; the median is printed.", 1)
_BATCHES = flags.DEFINE_integer("batches", 24, "Batches timed per round, after --warm_up batches.", 1)
_WARM_UP = flags.DEFINE_integer("warm_up", 12, "Batches before the clock starts: they empty every prefetch buffer.", 0)

SIZE = (256, 128)
BATCH = 64
IDENTITIES, IMAGES = 64, 8
MOST_DIFFERENCE = 3.0  # mean grey levels between the two chains; measured 1.1 to 1.4


class _NoTokenizer:
    """A tokenizer for one constant sentence and no words."""

    def encode(self, sentences: list[str]) -> np.ndarray:
        return np.zeros((len(sentences), 1), np.int32)


def make_jpeg(item: tuple[int, int, int, int]) -> bytes:
    """Makes a smoothed-noise JPEG of (identity, number, height, width), in colours and size like a person crop."""
    identity, number, height, width = item
    rng = np.random.default_rng([identity, number, height])
    coarse = cv2.resize(rng.integers(0, 256, (8, 4, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    fine = cv2.resize(rng.integers(0, 256, (height // 2, width // 2, 3), np.uint8), (width, height))
    return simplejpeg.encode_jpeg(cv2.addWeighted(coarse, 0.85, fine, 0.15, 0), quality=90)


def load(item: tuple[int, int, int, int]) -> schema.Record:
    identity, number, *_ = item
    return schema.Record(
        image=make_jpeg(item), file=f"{identity}_{number}.jpg", person=f"bench/p{identity:03d}", camera=0
    )


def pil_decode(data: str | bytes) -> PIL.Image.Image:
    source = data if isinstance(data, str) else io.BytesIO(data)
    return PIL.Image.open(source).convert("RGB")


def pil_augment(image: PIL.Image.Image, chosen: augment.Parameters) -> np.ndarray:
    """Applies the chain of `augment_into` with torchvision's PIL operations; returns u8[256,128,3]."""
    for operation, factor in chosen.jitter:
        if operation == augment.BRIGHTNESS:
            image = PIL.ImageEnhance.Brightness(image).enhance(factor)
        elif operation == augment.CONTRAST:
            image = PIL.ImageEnhance.Contrast(image).enhance(factor)
        elif operation == augment.SATURATION:
            image = PIL.ImageEnhance.Color(image).enhance(factor)
        else:
            hue, saturation, value = image.convert("HSV").split()
            shifted = np.array(hue, np.uint8) + np.uint8(int(factor * 255) % 256)
            image = PIL.Image.merge("HSV", (PIL.Image.fromarray(shifted), saturation, value)).convert("RGB")
    height, width = SIZE
    if image.size != (width, height):
        image = image.resize((width, height), PIL.Image.Resampling.BILINEAR)
    if chosen.flip:
        image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    pad, (down, right) = augment.Augment().pad, chosen.shift
    image = PIL.ImageOps.expand(image, border=pad, fill=0)
    image = image.crop((pad + right, pad + down, pad + right + width, pad + down + height))
    pixels = np.array(image)
    if chosen.erase:
        top, left, box_height, box_width = chosen.erase
        pixels[top : top + box_height, left : left + box_width] = chosen.colour
    return pixels


class TorchDataset(torch.utils.data.Dataset):
    """A map-style data set over image files, as PyTorch ReID trainers have."""

    def __init__(self, files: list[str], identities: list[int]) -> None:
        self.files, self.identities = files, identities
        self.options = augment.Augment()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        draws = torch.rand(augment.DRAWS, dtype=torch.float64).numpy()
        pixels = pil_augment(pil_decode(self.files[i]), augment.parameters(draws, self.options, SIZE))
        return torch.from_numpy(pixels), self.identities[i]


def _items(source: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    return [(identity, number, *source) for identity in range(IDENTITIES) for number in range(IMAGES)]


def compare_work(jpegs: list[bytes]) -> float:
    """Returns the mean difference in grey levels of both chains. Raises RuntimeError if it is more than rounding."""
    rng, options, differences = np.random.default_rng(0), augment.Augment(), []
    for data in jpegs[:100]:
        chosen = augment.parameters(rng.random(augment.DRAWS), options, SIZE)
        ours = np.empty((*SIZE, 3), np.uint8)
        augment.augment_into(ours, decode(data, SIZE), chosen)
        theirs = pil_augment(pil_decode(data), chosen)
        differences.append(np.abs(ours.astype(np.int16) - theirs).mean())
    if np.mean(differences) > MOST_DIFFERENCE:
        raise RuntimeError(f"the two chains differ by {np.mean(differences):.1f} grey levels: not the same work")
    return float(np.mean(differences))


def _rate(work: Callable[[], object], images: int) -> float:
    start = time.perf_counter()
    work()
    return images / (time.perf_counter() - start)


def stage_rates(jpegs: list[bytes], rounds: int) -> dict[str, tuple[float, float]]:
    """Returns images per second of one thread (ours, PIL) for decoding and for augmenting, medians of `rounds`."""
    options, out = augment.Augment(), np.empty((*SIZE, 3), np.uint8)
    draws = np.random.default_rng(0).random((len(jpegs), augment.DRAWS))
    arrays, pictures = [decode(j, SIZE) for j in jpegs], [pil_decode(j) for j in jpegs]

    def augment_ours() -> None:
        for image, uniform in zip(arrays, draws, strict=True):
            augment.augment_into(out, image, augment.parameters(uniform, options, SIZE))

    def augment_pil() -> None:
        for image, uniform in zip(pictures, draws, strict=True):
            pil_augment(image, augment.parameters(uniform, options, SIZE))

    stages = {
        "decode": (lambda: [decode(j, SIZE) for j in jpegs], lambda: [pil_decode(j) for j in jpegs]),
        "augment": (augment_ours, augment_pil),
    }
    measured: dict[str, list[list[float]]] = {name: [[], []] for name in stages}
    for _ in range(rounds):
        for name, sides in stages.items():
            for side, work in enumerate(sides):
                measured[name][side].append(_rate(work, len(jpegs)))
    return {name: (statistics.median(ours), statistics.median(pil)) for name, (ours, pil) in measured.items()}


def _ours(dataset: Dataset, workers: int, second_view: bool = False) -> Iterator[object]:
    unit = layout.Unit.of_task(dataset.name, "trad")
    plan = layout.plan_batch([unit], BATCH, 1, tokenizer=_NoTokenizer())
    options = BatchOptions(seed=0, image_size=SIZE, instruction_image_size=SIZE, second_view=second_view)
    data = TrainingData.of(plan, {dataset.name: dataset}, cast(Tokenizer, _NoTokenizer()), options)
    with data.stream(0, None, [0], ReadAhead(workers=workers, threads=1 if workers else 0)) as stream:
        for _, batch in stream:
            yield batch["text"]["image"]


def _torch(files: list[str], workers: int) -> Iterator[object]:
    data = TorchDataset(files, [i // IMAGES for i in range(len(files))])
    # One endless epoch: at an epoch's end a loader would empty its buffers and start its workers anew.
    endless = torch.utils.data.RandomSampler(data, replacement=True, num_samples=2**31)
    for image, _ in torch.utils.data.DataLoader(data, batch_size=BATCH, sampler=endless, num_workers=workers):
        yield image


def _stream_rate(batches: Iterable[object], warm_up: int, timed: int) -> float:
    iterator = iter(batches)
    for _ in range(warm_up):
        next(iterator)
    rate = _rate(lambda: [next(iterator) for _ in range(timed)], timed * BATCH)
    iterator.close()  # type: ignore[attr-defined]
    return rate


def _in_turns(first: Callable[[], Iterable[object]], second: Callable[[], Iterable[object]]) -> tuple[float, float]:
    """Images per second of two streams of batches, medians of the rounds."""
    rates = [
        [_stream_rate(stream(), _WARM_UP.value, _BATCHES.value) for stream in (first, second)]
        for _ in range(_ROUNDS.value)
    ]
    one, other = (statistics.median(column) for column in zip(*rates, strict=True))
    return one, other


def _report(name: str, ours: float, theirs: float) -> None:
    print(f"  {name:28s}{ours:12,.0f}{theirs:14,.0f}{ours / theirs:10.2f}")


def main(argv: list[str]) -> None:
    del argv
    torch.set_num_threads(1)
    for source in ((128, 64), SIZE):
        with tempfile.TemporaryDirectory() as folder:
            items = _items(source)
            spec = DatasetSpec(
                name="bench",
                version="1.0.0",
                task="trad",
                namespace="bench",
                people=[f"bench/p{i:03d}" for i in range(IDENTITIES)],
                splits={"train": items},
                load=load,
                source={"height": source[0], "width": source[1]},
            )
            write_dataset(folder, spec, BuildOptions(workers=1, progress=False))
            dataset = open_dataset(folder, "bench")
            jpegs = [make_jpeg(item) for item in items]
            files = [str(pathlib.Path(folder, f"{i:05d}.jpg")) for i in range(len(jpegs))]
            for file, data in zip(files, jpegs, strict=True):
                pathlib.Path(file).write_bytes(data)
            difference = compare_work(jpegs)
            print(
                f"\nJPEG {source[0]}x{source[1]}, {sum(map(len, jpegs)) / len(jpegs) / 1024:.1f} KiB each -> "
                f"{SIZE[0]}x{SIZE[1]}; both chains agree to {difference:.2f} grey levels"
            )
            print(f"  {'images/s':28s}{'irm_jax':>12s}{'torch + PIL':>14s}{'ratio':>10s}")
            for stage, (ours, theirs) in stage_rates(jpegs, _ROUNDS.value).items():
                _report(f"{stage}, one thread", ours, theirs)
            for workers in map(int, _WORKERS.value):
                batches = functools.partial(_ours, dataset, workers)
                rates = _in_turns(batches, functools.partial(_torch, files, workers))
                _report(f"total, {workers} worker processes", *rates)
            one, two = _in_turns(functools.partial(_ours, dataset, 0), functools.partial(_ours, dataset, 0, True))
            print(f"  time with two views of every image, beside one: {one / two:.2f}")


if __name__ == "__main__":
    app.run(main)
