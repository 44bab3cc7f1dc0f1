"""Time of the real training step at paper scale, on the devices that are here: what each part of IRM++ adds to it.

Usage: python -m benchmarks.paper_step [--config configs/irm_pp.py] [--only irm,bank] [--steps 10] [--rounds 3]
           [--config.model.dtype=bfloat16] [--config.data.batch_size=256] ...
       python -m benchmarks.paper_step --products        (no step is run: only the products of each are counted)
       python -m benchmarks.paper_step --cuts [--config configs/quickstart.py]   (the cuts of the work in a step)
       python -m benchmarks.paper_step --accumulate 2 [--config configs/quickstart.py]   (batches of one step)

Every variant is the configuration with a part of IRM++ taken away, its training step compiled as a run compiles it and
fed with one batch of noise, so that no data set is needed. The variants take turns; printed are the FLOPs of a step's
products, the median time of a step, its ratio to the first variant's, images a second, FLOP/s over the chip's peak
(products that `model.remat` computes twice counted once), the compiled program's peak of memory, and what `--mode
compile` would say of that program: the least that products and memory traffic could take. Chips that are not in
irm_jax/compile/chips.py have no peak to compare with.

With `--cuts` the variants are the configuration as it is and with each cut of the work: half of the patches left out,
images of half the height and width, editing that reads half of the patches. With `--accumulate N` they are one batch
and N batches a step: accumulation is free where N batches take N times as long, or less, since one update serves all.

All variants' states are held at once: at paper scale 5 to 6 GB each, and the batch's activations.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh
from ml_collections import ConfigDict, config_flags

from data_pipelines import options
from data_pipelines.batches import layout as batch_plan
from data_pipelines.batches.training_data import TrainingData
from irm_jax.compile import analytic_flops, chips, programs, roofline, targets, traffic
from irm_jax.config import check
from irm_jax.models import encoders, presets
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.parallel.devices import enable_compilation_cache
from irm_jax.run import Run, planned

_CONFIG = config_flags.DEFINE_config_file("config", "configs/irm_pp.py", "Configuration file.", lock_config=True)
_ONLY = flags.DEFINE_list("only", [], "Names of variants, instead of all.")
_STEPS = flags.DEFINE_integer("steps", 10, "Steps timed together in a round.", 1)
_CUTS = flags.DEFINE_bool("cuts", False, "Compare the cuts of the work in a step, not the parts of IRM++.")
_ACCUMULATE = flags.DEFINE_integer("accumulate", None, "Compare one batch a step with so many.", 2)
_PRODUCTS = flags.DEFINE_bool("products", False, "Count the products of a step, run nothing.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Rounds; in each, every variant has its turn.", 1)

BANK = {"memory_bank.size": 0, "momentum.second_view": False}
QUEUE = {"text_to_image.momentum_contrast": False, "text_to_image.queue_size": 0}
MATCHING, MASKED, REPLACED = ({f"loss.{name}_weight": 0.0} for name in ("matching", "masked", "replaced"))
VARIANTS: dict[str, dict[str, Any]] = {
    "irm": {**BANK, **QUEUE, **MATCHING, **MASKED, **REPLACED},
    "bank": {"momentum.second_view": False, **QUEUE, **MATCHING, **MASKED, **REPLACED},
    "queue": {**BANK, **MATCHING, **MASKED, **REPLACED},
    "matching": {**BANK, **QUEUE, **MASKED, **REPLACED},
    "masked": {**BANK, **QUEUE, **MATCHING, **REPLACED},
    "replaced": {**BANK, **QUEUE, **MATCHING, **MASKED},
    "irm_pp": {},
}
"""Name -> keys that are changed in configs/irm_pp.py: the name says what is left beside IRM."""


def cuts(config: ConfigDict) -> dict[str, dict[str, Any]]:
    """Name -> keys that are changed in a configuration, of the cuts of the work in a step."""
    rows, columns = encoders.token_layout(presets.from_options(config.model.to_dict())).grid
    return {
        "whole": {},
        "patch_dropout": {"model.patch_dropout": 0.5},
        "half_size": {"data.growth": ("0=0.5", "1=1")},
        "editing_patches": {"model.editing_patches": rows * columns // 2},
    }


@dataclasses.dataclass
class Step:
    """A compiled training step with the state and the batch that it is run on."""

    compiled: Any
    held: Any
    batch: Any
    constants: jax.Array
    rows: int
    ideal_seconds: float | None
    flops: analytic_flops.Flops
    seconds: list[float] = dataclasses.field(default_factory=list)

    def run(self, steps: int) -> None:
        """Runs that many steps and notes the time of one."""
        begin = time.perf_counter()
        for number in range(steps):
            self.held, metrics = self.compiled(self.held, self.batch, self.constants, jax.random.key(number))
        jax.block_until_ready(metrics)
        self.seconds.append((time.perf_counter() - begin) / steps)


def noise(spec: dict[str, dict[str, jax.ShapeDtypeStruct]], data: TrainingData) -> dict[str, dict[str, np.ndarray]]:
    """A whole batch of these shapes: images of noise, people of each data set, constant sentences."""
    random, plan = np.random.default_rng(0), data.plan
    batch = {
        group: {name: np.zeros(of.shape, of.dtype) for name, of in fields.items()} for group, fields in spec.items()
    }
    for group, fields in batch.items():
        for name, values in fields.items():
            if values.dtype == np.uint8:
                values[:] = random.integers(0, 256, values.shape, np.uint8)
            elif values.dtype == np.bool_:
                values[:] = True
            elif name in ("tokens", "key_tokens") or (name == "table" and group == "text"):
                values[:] = plan.constant_tokens[random.integers(0, len(plan.constant_tokens), values.shape[:-1])]
            elif name.endswith("attributes"):
                values[:] = -1
            elif name.endswith(("instruction", "key")):
                values[:] = -1 - plan.neutral
        for layout in plan.of_kind(group):
            _fill(fields, layout, data)
    return batch


def _fill(fields: dict[str, np.ndarray], layout: batch_plan.UnitLayout, data: TrainingData) -> None:
    rows = slice(layout.row, layout.row + layout.rows)
    people = data.space.of(data.plan.datasets[layout.dataset])
    block, row = np.ogrid[: data.plan.batch_blocks, : layout.rows]
    drawn = block * layout.identities + row // layout.unit.images_per_identity
    fields["identity"][..., rows] = people[drawn % len(people)]
    fields["dataset"][..., rows], fields["task"][..., rows] = layout.dataset, layout.task_id


def training(config: ConfigDict, mesh: Mesh) -> tuple[Run, programs.Program]:
    """The run with planned data, and its training step over abstract arrays. Raises ConfigError for a wrong key."""
    check.check(config)
    run = planned(config, mesh)
    sizes = encoders.sizes_of(run.model.config, options.growth_of(config))
    return run, programs.training(run, sizes[0][1] if sizes else None)[0]


def make_step(config: ConfigDict, mesh: Mesh) -> Step:
    """Compiles the training step, and makes what it is run on."""
    run, program = training(config, mesh)
    traced = program.trace()
    with jax.set_mesh(mesh):
        compiled = traced.lower().compile()
    rows, ideal = config.data.batch_size * config.optimizer.accumulate, programs.ideal_seconds(run)
    constants, spec = jnp.asarray(run.data.plan.constant_tokens), program.arguments[1]
    batch = jax.tree.map(lambda values, of: mesh_lib.distribute(values, of.sharding), noise(spec, run.data), spec)
    return Step(compiled, run.fresh_state(), batch, constants, rows, ideal, analytic_flops.count(traced.jaxpr))


def variants() -> dict[str, ConfigDict]:
    """The configuration of the flags with the changes of each variant that is asked for."""
    changes = cuts(_CONFIG.value) if _CUTS.value else VARIANTS
    if count := _ACCUMULATE.value:
        changes = {"1 batch": {"optimizer.accumulate": 1}, f"{count} batches": {"optimizer.accumulate": count}}
    if unknown := set(_ONLY.value) - changes.keys():
        raise app.UsageError(f"unknown variants {sorted(unknown)}; there are {', '.join(changes)}")
    found = {}
    for name in [name for name in changes if name in _ONLY.value] or list(changes):
        found[name] = _CONFIG.value.copy_and_resolve_references()
        found[name].update_from_flattened_dict(changes[name])
    return found


def predicted(step: Step, mesh: Mesh) -> str:
    """`products / memory` in ms, the least by the chip's peaks."""
    chip = chips.chip_of(mesh.devices.flat[0].device_kind)
    if chip is None:
        return "–"
    topology = chips.Topology(chip.name, chip, mesh.devices.size, 1)
    moved = traffic.count_traffic(step.compiled.as_text())
    terms = roofline.seconds(step.flops, moved, topology, [0] * mesh.devices.size)
    return f"{1e3 * terms['compute']:.1f} / {1e3 * terms['memory']:.1f}"


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; name variants as --only irm,bank")
    configs = variants()
    mesh = mesh_lib.make_mesh(_CONFIG.value.mesh)
    if _PRODUCTS.value:
        print_products(configs, mesh)
    else:
        print_times(configs, mesh)


def print_products(configs: dict[str, ConfigDict], mesh: Mesh) -> None:
    """FLOPs of each variant's products, with those that `model.remat` computes twice, and their ratio to the first."""
    counted = {name: analytic_flops.count(training(config, mesh)[1].trace().jaxpr) for name, config in configs.items()}
    first = next(iter(counted.values())).total()
    print("| variant | GFLOP a step | ratio |\n|---|---|---|")
    for name, flops in counted.items():
        print(f"| {name} | {flops.total() / 1e9:,.0f} | {flops.total() / first:.2f} |")


def print_times(configs: dict[str, ConfigDict], mesh: Mesh) -> None:
    """Compiles all variants at once, runs them in turn and prints the table."""
    enable_compilation_cache(_CONFIG.value)
    begin = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        made = {name: pool.submit(make_step, config, mesh) for name, config in configs.items()}
        steps = {name: future.result() for name, future in made.items()}
    print(f"compiled {len(steps)} training steps in {time.perf_counter() - begin:.0f} s", flush=True)
    with jax.set_mesh(mesh):
        for step in steps.values():
            step.run(2)  # warms up
            step.seconds.clear()
        for _ in range(_ROUNDS.value):
            for step in steps.values():
                step.run(_STEPS.value)
    first = next(iter(steps.values()))
    model = _CONFIG.value.model
    print(
        f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}, jax {jax.__version__}: {first.rows} rows, "
        f"{model.preset}, {model.dtype}, remat {model.remat}, {_ROUNDS.value} rounds of {_STEPS.value} steps\n"
    )
    print("| variant | GFLOP | ms a step | ratio | images/s | MFU | peak GiB | least ms: products / memory |")
    print("|---|---|---|---|---|---|---|---|")
    for name, step in steps.items():
        seconds = statistics.median(step.seconds)
        ratio = statistics.median(one / other for one, other in zip(step.seconds, first.seconds, strict=True))
        mfu = f"{step.ideal_seconds / seconds:.3f}" if step.ideal_seconds else "–"
        peak = targets.peak_bytes(step.compiled.memory_analysis()) / chips.GIB
        print(
            f"| {name} | {step.flops.total() / 1e9:,.0f} | {1e3 * seconds:.1f} | {ratio:.3f} | "
            f"{step.rows / seconds:.0f} | {mfu} | {peak:.2f} | {predicted(step, mesh)} |",
            flush=True,
        )


if __name__ == "__main__":
    app.run(main)
