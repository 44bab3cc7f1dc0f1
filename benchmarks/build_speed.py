"""Images per second and peak memory of a build whose list does not fit into memory (layout of SYNTH-PEDES).

    python -m benchmarks.build_speed [--images 20000 200000] [--workers 1]

For each size a tree of small JPEGs and its list are made in a temporary folder and built by a separate process. `base`
is that process's memory after its imports; growth beyond it with the number of images is the cost of a longer list.
Linux only: memory is the kernel's high-water mark of each process (VmHWM).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from data_pipelines import sources
from data_pipelines.dataset.writer import BuildOptions, worker_pool, write_dataset

IMAGES_PER_PERSON = 15
_SOURCE = "synth_pedes"


def make_tree(root: Path, images: int) -> None:
    """Draws 64 JPEGs of 128x64 and writes them `images` times, 1,000 per folder, with two captions each in the list."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (64, 8, 4, 3), np.uint8).repeat(16, 1).repeat(16, 2)
    pictures = [cv2.imencode(".jpg", pixels)[1].tobytes() for pixels in blocks]
    with open(root / "synthpedes_dataset.json", "w", encoding="utf-8") as file:
        for number in range(images):
            folder = f"Part{1 + number // 1000 % 6}/{number // 1000}"
            if number % 1000 == 0:
                (root / folder).mkdir(parents=True)
            (root / folder / f"{number}.jpg").write_bytes(pictures[number % len(pictures)])
            person = (number // IMAGES_PER_PERSON * 7919) % (images // IMAGES_PER_PERSON + 1)  # not in order
            entry = {
                "id": person,
                "file_path": f"{folder}/{number}.jpg",
                "attributes": ["man,short hair,blue shirt,black trousers,backpack"],
                "captions": [
                    f"A man with short hair walks to the left, in a blue shirt and black trousers, as number {number}.",
                    "He carries a black backpack over both shoulders and looks at his phone.",
                ],
                "prompt_caption": [],
            }
            file.write(f"{',' if number else '['}\n{json.dumps(entry)}")
        file.write("\n]\n")


def peak_mib(_: int = 0) -> float:
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    if found is None:
        raise OSError("no VmHWM in /proc/self/status: this benchmark needs Linux")
    return int(found[1]) / 1024


def build(root: Path, out: Path, workers: int) -> dict[str, float]:
    """Builds the tree in this process and `workers` more; returns seconds and MiB."""
    base, start = peak_mib(), time.perf_counter()
    source = sources.get_source(_SOURCE)
    scan = source.scan(root)
    scanned, after_scan = time.perf_counter(), peak_mib()
    with worker_pool(workers) as pool:
        write_dataset(out, source.spec(root, scan), BuildOptions(workers=workers, pool=pool, progress=False))
        written = time.perf_counter()
        worker = max(pool.map(peak_mib, range(8 * workers)))
    return {
        "scan_s": scanned - start,
        "write_s": written - scanned,
        "base": base,
        "scan_peak": after_scan,
        "peak": peak_mib(),
        "worker_peak": worker,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures images/s and peak memory of a build with a very long list.")
    parser.add_argument("--images", type=int, nargs="+", default=[20_000], help="sizes of the tree")
    parser.add_argument("--workers", type=int, default=1, help="processes that write shards")
    parser.add_argument("--build", nargs=2, metavar=("TREE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        tree, out = map(Path, options.build)
        print(json.dumps(build(tree, out, options.workers)))
        return
    print("  images  list MiB   scan s  write s  images/s   base MiB  after scan  peak MiB  worker MiB")
    for images in options.images:
        with tempfile.TemporaryDirectory() as folder:
            tree, out = Path(folder, "tree"), Path(folder, "out")
            tree.mkdir()
            make_tree(tree, images)
            command = [sys.executable, "-m", "benchmarks.build_speed", "--workers", str(options.workers)]
            command += ["--build", str(tree), str(out)]
            measured = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            size = (tree / "synthpedes_dataset.json").stat().st_size / 2**20
            rate = images / (measured["scan_s"] + measured["write_s"])
            print(
                f"{images:>8,}  {size:>8.1f}  {measured['scan_s']:>7.1f}  {measured['write_s']:>7.1f}  {rate:>8.0f}  "
                f"{measured['base']:>9.0f}  {measured['scan_peak']:>10.0f}  {measured['peak']:>8.0f}  "
                f"{measured['worker_peak']:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
