"""`--mode compile --topology v5e:16x16`: compiles a run's programs for devices that are not here; writes a table."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable

import jax
from absl import logging
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines import files, options
from data_pipelines.batches import layout
from irm_jax import run as runs
from irm_jax.compile import page, programs, roofline, targets
from irm_jax.compile.chips import GIB, Topology
from irm_jax.compile.scheduled import Job
from irm_jax.compile.targets import Compiled
from irm_jax.config import check
from irm_jax.errors import UserError
from irm_jax.evaluation.report import compile_table
from irm_jax.logs.workdir import locked, require_free
from irm_jax.parallel import mesh as mesh_lib

PAGE = "compile.html"
SEARCH_COMPILES = 6
"""Limit of compilations in a search for the largest batch, after the first one."""


class DoesNotFit(UserError, RuntimeError):
    """A step needs more memory than a chip has; the message says how much more, and what to change."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One step's line of the table, as in compile.json. Sizes are per device, FLOPs of all devices together.

    The times `network` and `memory` are None if the step does not fit and so did not compile.
    """

    topology: str
    devices: int
    peak_bytes: int
    limit_bytes: int
    flops: int
    collective_bytes: dict[str, int]
    roofline_s: dict[str, float | None]
    bound: str
    compile_s: float

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.limit_bytes

    @property
    def seconds(self) -> float | None:
        """The longest of the three times."""
        times = [time for time in self.roofline_s.values() if time is not None]
        return max(times) if len(times) == len(self.roofline_s) else None


def compile_run(config: ConfigDict, workdir: epath.Path, topology: Topology) -> dict[str, Entry]:
    """Compiles all steps, prints the table, writes compile.json and compile.html into `workdir`.

    Raises DoesNotFit after that, if a step does not fit into a chip's memory; before it, what `require_free` does.
    """
    require_free(workdir)
    mesh = targets.make_mesh(config.mesh, topology)
    groups = targets.groups(mesh, topology)
    fit_batch(config, mesh_lib.row_shards(mesh))
    entries: dict[str, Entry] = {}
    if config.compile.search_batch:
        entries["train"] = search(config, lambda: compile_step("train", config, mesh, topology, groups), mesh)
    for step in config.compile.steps:
        if step not in entries:
            entries[step] = compile_step(step, config, mesh, topology, groups)
    described = describe(config, mesh, topology)
    print(page.text(entries, described))
    table = {step: dataclasses.asdict(entry) for step, entry in entries.items()}
    with locked(workdir):
        files.write_atomically(workdir / compile_table.FILE, json.dumps(table, indent=1, allow_nan=False) + "\n")
        files.write_atomically(workdir / PAGE, page.html(entries, described))
    logging.info("the table is in %s and %s", workdir / compile_table.FILE, workdir / PAGE)
    refuse(entries, config, mesh)
    return entries


def compile_step(step: str, config: ConfigDict, mesh: Mesh, topology: Topology, groups: list[int]) -> Entry:
    """Compiles the programs of one step and adds them up."""
    run = runs.planned(config, mesh)
    done: list[Compiled] = []
    for number, program in enumerate(programs.STEPS[step](run)):
        logging.info("compiling %s (%s) for %s x %d", program.name, step, topology.name, topology.groups)
        if step == "train" and without_code(config, topology):
            done.append(targets.schedule_program(program, Job(config, step, number, topology)))
        else:
            done.append(targets.compile_program(program, topology))
    return entry(done, topology, groups)


def without_code(config: ConfigDict, topology: Topology) -> bool:
    """Whether the training step is compiled up to its schedule and memory layout only."""
    return topology.chip.is_tpu and not config.compile.machine_code


def entry(done: list[Compiled], topology: Topology, groups: list[int]) -> Entry:
    """Sums the programs of a step, which run one after the other, to one line of the table."""
    sizes: collections.Counter[str] = collections.Counter()
    times: dict[str, float | None] = dict.fromkeys(roofline.TERMS, 0.0)
    flops: collections.Counter[str] = collections.Counter()
    for one in done:
        flops += one.flops
        terms: dict[str, float | None] = {"compute": roofline.compute_seconds(one.flops, topology)}
        if one.traffic is None:
            terms |= {"memory": None, "network": None}
        else:
            sizes.update(one.traffic.collective_bytes())
            terms |= roofline.seconds(one.flops, one.traffic, topology, groups)
        for term, value in terms.items():
            before = times[term]
            times[term] = None if before is None or value is None else before + value
    peak, limit = max(one.peak_bytes for one in done), int(topology.chip.memory_bytes)
    complete = {term: time for term, time in times.items() if time is not None}
    return Entry(
        topology=topology.title,
        devices=topology.devices,
        peak_bytes=peak if all(one.fits for one in done) else max(peak, limit + 1),
        limit_bytes=limit,
        flops=int(flops.total()),
        collective_bytes=dict(sizes),
        roofline_s=times,
        bound=roofline.bound(complete) if len(complete) == len(times) else "does not fit",
        compile_s=round(sum(one.seconds for one in done), 1),
    )  # fmt: skip


def fit_batch(config: ConfigDict, shards: int) -> None:
    """Changes the configuration's blocks and batch size to the nearest that `shards` shards of rows allow.

    Logs the keys that a training needs for the same batch.
    """
    data = config.data
    blocks, size = check.fitting_batch(config, shards)
    if (blocks, size) != (data.batch_blocks, data.batch_size):
        logging.warning(
            "the batch of %d rows in %d blocks does not divide over %d shards of rows; this table is for "
            "--config.data.batch_size=%d --config.data.batch_blocks=%d",
            data.batch_size, data.batch_blocks, shards, size, blocks,
        )  # fmt: skip
        data.batch_size, data.batch_blocks = size, blocks


def search(config: ConfigDict, compile_train: Callable[[], Entry], mesh: Mesh) -> Entry:
    """Finds the largest batch whose training step fits, by compiling a few; leaves its size in `config`.

    The peak of memory is nearly affine in the batch size, so two sizes predict the third.
    """
    units, blocks = options.units_of(config), config.data.batch_blocks
    smallest = layout.next_batch_size(units, 1, blocks)

    def at(size: int) -> Entry:
        config.data.batch_size = size
        found = compile_train()
        logging.info("batch %d: %.2f of %.2f GiB", size, found.peak_bytes / GIB, found.limit_bytes / GIB)
        return found

    known: dict[int, Entry] = {config.data.batch_size: at(config.data.batch_size)}
    for _ in range(SEARCH_COMPILES):
        fitting, failing = ([s for s, e in known.items() if e.fits is fits] for fits in (True, False))
        best, worst = max(fitting, default=0), min(failing, default=0)
        if not best:
            target = worst // 2
        elif not worst:
            target = 2 * best
        else:
            target = (best + worst) // 2
        points = sorted(known)[-2:]
        if len(points) == 2:
            (low, high), limit = points, known[points[0]].limit_bytes
            slope = (known[high].peak_bytes - known[low].peak_bytes) / (high - low)
            if slope > 0:
                guess = int(low + (limit - known[low].peak_bytes) / slope * 0.98)
                if best < guess and (not worst or guess < worst):
                    target = guess
        size = layout.next_batch_size(units, max(target, 1), blocks)
        if worst and size >= worst:
            size = layout.next_batch_size(units, best + 1, blocks) if best else smallest
        if size in known or (worst and size >= worst):
            break
        known[size] = at(size)
        if best and size > best and known[size].fits and worst and (worst - size) < 0.03 * size:
            break
    fitting = [size for size, found in known.items() if found.fits]
    chosen = max(fitting) if fitting else min(known)
    config.data.batch_size = chosen
    if fitting:
        logging.info(
            "largest batch found: --config.data.batch_size=%d --config.data.batch_blocks=%d (%.1f rows per device)",
            chosen, blocks, chosen / mesh.devices.size,
        )  # fmt: skip
    return known[chosen]


def describe(config: ConfigDict, mesh: Mesh, topology: Topology) -> page.Described:
    """Describes in words what the table is about."""
    chip = topology.chip
    source = "peak of the program in the TPU compiler's memory layout"
    if without_code(config, topology) and "train" in config.compile.steps:
        source += "; no machine code was made of the training step (--config.compile.machine_code=True makes it)"
    if not chip.is_tpu:
        source = (
            "an estimate: the buffers of XLA:CPU's program for as many simulated devices, which computes products of "
            "bfloat16 in float32"
        )
    return page.Described(
        mesh=", ".join(f"{axis} {size}" for axis, size in mesh.shape.items()),
        batch=config.data.batch_size * config.optimizer.accumulate,
        steps=config.train.steps,
        embedded=-(-config.evaluation.batch_size // mesh_lib.row_shards(mesh)) * mesh_lib.row_shards(mesh),
        settings=f"{config.model.preset}, {config.model.dtype}, remat {config.model.remat}, batch_blocks "
        f"{config.data.batch_blocks}",
        memory_source=source,
        versions=f"jax {jax.__version__}",
    )


def refuse(entries: dict[str, Entry], config: ConfigDict, mesh: Mesh) -> None:
    """Raises DoesNotFit if a step is too large, with its excess and what to change."""
    large = {step: found for step, found in entries.items() if not found.fits}
    if not large:
        return
    lines = []
    for step, found in large.items():
        needed, limit = found.peak_bytes / GIB, found.limit_bytes / GIB
        lines.append(f"{step} needs {needed:.2f} GiB per device of {found.topology}, {needed - limit:.2f} GiB too much")
    cures = []
    if "train" in large:
        if config.model.remat != "full":
            more = "minimal" if config.model.remat == "none" else "full"
            cures.append(f"--config.model.remat={more}")
        if config.model.dtype == "float32":
            cures.append("--config.model.dtype=bfloat16")
        if mesh.shape["fsdp"] == 1 and mesh.devices.size > 1:
            cures.append("--config.mesh.fsdp=N (parameters and optimizer cut over N devices)")
        cures.append(f"a smaller --config.data.batch_size than {config.data.batch_size}")
        cures.append("--config.compile.search_batch=True finds the largest that fits")
    if "embed" in large:
        cures.append(f"a smaller --config.evaluation.batch_size than {config.evaluation.batch_size}")
    if "ranking" in large:
        cures.append("a smaller --config.evaluation.query_block")
    raise DoesNotFit(f"{'; '.join(lines)}. Change: {'; '.join(cures)}")
