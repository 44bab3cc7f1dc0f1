"""Time of a training step on this CPU with and without one of its forms, as a ratio.

Usage: python -m benchmarks.step_speed [--part PART] [--config quickstart] [--set KEY=VALUE ...] [--pairs 3] [--steps 8]

allocator: glibc's tunables (irm_jax/allocator.py). attention: the division after the product
(irm_jax/models/attention.py). dense: the gradient of a dense layer's kernel (irm_jax/models/dense.py). convolution: the
gradients of stems (irm_jax/models/convolution.py), which count in loops: `--set optimizer.accumulate=2`. remat: blocks
in a loop whose backward pass computes again what it did not keep (`model.scan_layers`, `model.remat=full`), for memory.
muon: matrices of one size in one stack (irm_jax/training/muon.py), beside optax's, which takes them one by one.

Every measurement is a process of its own, since glibc reads its tunables at start; the two kinds take turns, so that a
machine whose speed drifts slows both. Page faults are counted beside the clock: they do not depend on the neighbours.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from irm_jax import allocator

PARTS = ("allocator", "attention", "dense", "convolution", "remat", "muon")
REMAT = {"model.scan_layers": True, "model.remat": "full"}


def make_plain(part: str) -> None:
    """Gives `part` of this process its plain form."""
    from optax import contrib

    from irm_jax.models import attention, convolution, dense
    from irm_jax.training import muon, optimizer

    if part == "attention":
        attention.attend = attention._attend
    elif part == "dense":
        dense._product = dense._plain
    elif part == "convolution":
        convolution._convolution = convolution._plain
    elif part == "muon":

        def plain(learning_rate: Any, **options: Any) -> Any:
            dimensions = {"muon_weight_dimension_numbers": muon.dimensions}
            return contrib.muon(learning_rate, consistent_rms=0.2, **options, **dimensions)

        optimizer.muon = plain


def measure(run_file: str, keys: dict[str, Any], steps: int) -> dict[str, float]:
    """Measures `steps` steps of a run file with some `keys` set.

    Returns seconds (median), CPU seconds and page faults (means) of a step, this process's peak memory in GB, and rows.
    """
    import jax
    import jax.numpy as jnp
    from absl import flags

    from irm_jax import run as runs
    from irm_jax.config import load
    from irm_jax.parallel import devices
    from irm_jax.parallel import mesh as mesh_lib

    flags.FLAGS.mark_as_parsed()
    config = load(run_file)
    config.update_from_flattened_dict(keys)
    devices.enable_compilation_cache(config)
    run = runs.build(config)
    current, step = run.fresh_state(), run.train_step
    constants, key = jnp.asarray(run.data.plan.constant_tokens), jax.random.key(1)
    batches = config.optimizer.accumulate
    with run.stream(0, 1, workers=0) as stream:
        layout = mesh_lib.batch_sharding(run.mesh, leading=int(batches > 1))
        batch = mesh_lib.to_global(next(stream)[1], layout)
    seconds = []
    with jax.set_mesh(run.mesh):
        for _ in range(3):  # the first compiles, the others warm up
            current, metrics = step(current, batch, constants, key)
            jax.block_until_ready(metrics)
        before = resource.getrusage(resource.RUSAGE_SELF)
        for _ in range(steps):
            begin = time.perf_counter()
            current, metrics = step(current, batch, constants, key)
            jax.block_until_ready(metrics)
            seconds.append(time.perf_counter() - begin)
        after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": statistics.median(seconds),
        "cpu_seconds": (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / steps,
        "page_faults": (after.ru_minflt - before.ru_minflt) / steps,
        "peak_gb": after.ru_maxrss / 1e6,
        "rows": run.data.plan.batch_size * batches,
    }


def parsed(setting: str) -> tuple[str, Any]:
    """Returns the key and the value of "KEY=VALUE"."""
    key, _, value = setting.partition("=")
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of a training step with and without one of its forms.")
    parser.add_argument("--part", default="allocator", choices=PARTS, help="the form that is taken away")
    parser.add_argument("--config", default="quickstart", help="name or path of a run file")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="keys, such as model.preset=small")
    parser.add_argument("--pairs", type=int, default=3, help="processes of each kind")
    parser.add_argument("--steps", type=int, default=8, help="steps timed in a process")
    parser.add_argument("--one", choices=("plain", "form"), help="measure in this process and print JSON")
    options = parser.parse_args()
    if options.one:
        if options.one == "plain":
            make_plain(options.part)
        keys = dict(map(parsed, options.set)) | (REMAT if (options.part, options.one) == ("remat", "form") else {})
        print(json.dumps(measure(options.config, keys, options.steps)))
        return
    command = [sys.executable, "-m", "benchmarks.step_speed", "--config", options.config, "--part", options.part]
    command += ["--steps", str(options.steps), "--set", *options.set]
    untuned = {key: value for key, value in os.environ.items() if key != allocator.VARIABLE}
    tuned = {**untuned, allocator.VARIABLE: allocator.TUNABLES}
    environments = {"plain": untuned if options.part == "allocator" else tuned, "form": tuned}
    ratios = []
    print(f"{options.part:>12}  {'s/step':>7}  {'CPU s':>6}  {'faults':>8}  {'peak GB':>7}  {'img/s':>6}")
    for _ in range(options.pairs):
        found = {}
        for name, environment in environments.items():
            run = [*command, "--one", name]
            out = subprocess.run(run, env=environment, check=True, capture_output=True, text=True).stdout
            found[name] = json.loads(out.splitlines()[-1])
            m = found[name]
            print(
                f"{name:>12}  {m['seconds']:>7.3f}  {m['cpu_seconds']:>6.2f}  {m['page_faults']:>8.0f}  "
                f"{m['peak_gb']:>7.2f}  {m['rows'] / m['seconds']:>6.0f}"
            )
        ratios.append(found["plain"]["seconds"] / found["form"]["seconds"])
    print(f"plain over {options.part}: {statistics.median(ratios):.2f} (of {', '.join(f'{r:.2f}' for r in ratios)})")


if __name__ == "__main__":
    main()
