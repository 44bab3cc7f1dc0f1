"""Images per second that one core renders and compresses.

    python -m benchmarks.render_speed [--size 128 64] [--seconds 5]

The target is 600 at 128x64. CPU time is printed beside the clock, because it holds on a busy machine, too.
"""

from __future__ import annotations

import argparse
import itertools
import time

import cv2

from data_pipelines.procedural.benchmark import Benchmark


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures images per second that one core renders and compresses.")
    parser.add_argument(
        "--size", type=int, nargs=2, action="append", metavar=("HEIGHT", "WIDTH"), help="may be repeated"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to render at each size")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(f"{'size':>9}  {'img/s (clock)':>14}  {'img/s (CPU)':>12}  {'bytes':>7}")
    for height, width in options.size or ((64, 32), (128, 64), (256, 128), (384, 192)):
        benchmark = Benchmark(image_size=(height, width))
        shots = [shot for task in ("trad", "cc", "vi") for split in benchmark.shots(task).values() for shot in split]
        benchmark.load(shots[0])  # the noise pool is made once per process
        clock, cpu, size, count = time.perf_counter(), time.process_time(), 0, 0
        for shot in itertools.cycle(shots):
            count += 1
            size += len(benchmark.load(shot).image)
            if time.perf_counter() - clock >= options.seconds:
                break
        clock, cpu = time.perf_counter() - clock, time.process_time() - cpu
        print(f"{height:>4}x{width:<4}  {count / clock:>14.0f}  {count / cpu:>12.0f}  {size / count:>7.0f}")


if __name__ == "__main__":
    main()
