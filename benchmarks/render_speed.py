"""Images a second that one core renders and compresses.

Usage: python benchmarks/render_speed.py [--size 128,64] [--seconds 5]

The target is 600 at 128x64. CPU time is counted beside the clock: on a busy machine it is the one that holds.
"""

from __future__ import annotations

import itertools
import time

import cv2
from absl import app, flags

from data_pipelines.procedural.benchmark import Benchmark

_SIZES = flags.DEFINE_multi_string("size", ["64,32", "128,64", "256,128", "384,192"], "Height,width; may be repeated.")
_SECONDS = flags.DEFINE_float("seconds", 5.0, "How long to render at each size.", lower_bound=0.1)


def main(argv: list[str]) -> None:
    del argv
    cv2.setNumThreads(1)
    print(f"{'size':>9}  {'img/s (clock)':>14}  {'img/s (CPU)':>12}  {'bytes':>7}")
    for text in _SIZES.value:
        height, width = (int(value) for value in text.split(","))
        benchmark = Benchmark(image_size=(height, width))
        shots = [shot for task in ("trad", "cc", "vi") for split in benchmark.shots(task).values() for shot in split]
        benchmark.load(shots[0])  # the noise pool is made once a process
        clock, cpu, size, count = time.perf_counter(), time.process_time(), 0, 0
        for shot in itertools.cycle(shots):
            count += 1
            size += len(benchmark.load(shot).image)
            if time.perf_counter() - clock >= _SECONDS.value:
                break
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        print(f"{height:>4}x{width:<4}  {count / clock:>14.0f}  {count / cpu:>12.0f}  {size / count:>7.0f}")


if __name__ == "__main__":
    app.run(main)
