"""Compiles programs for devices that are not here: the mesh of a topology, and both compilers."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import time
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

from irm_jax.compile.analytic_flops import Flops, count
from irm_jax.compile.chips import GIB, Topology, TopologyError
from irm_jax.compile.programs import Program
from irm_jax.compile.scheduled import Compilation, CompilerError, Job
from irm_jax.compile.traffic import Traffic, count_traffic
from irm_jax.errors import pip_line
from irm_jax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class Compiled:
    """One compiled program.

    `peak_bytes`: of memory per device. If the program does not fit into it, that is what the compiler asked for, and
    `traffic` is None.
    """

    peak_bytes: int
    traffic: Traffic | None
    flops: Flops
    seconds: float

    @property
    def fits(self) -> bool:
        return self.traffic is not None


def make_mesh(shape: Mapping[str, int], topology: Topology) -> Mesh:
    """Makes the mesh over the devices of a topology. GPUs are stood for by as many simulated devices of this machine.

    Raises TopologyError for a topology that the TPU compiler does not know, or without it.
    """
    if not topology.chip.is_tpu:
        devices = jax.devices("cpu")
        if len(devices) < topology.devices:
            raise TopologyError(f"{len(devices)} simulated devices, but {topology.name} has {topology.devices}")
        return mesh_lib.make_mesh(shape, devices[: topology.devices])
    if importlib.util.find_spec("libtpu") is None:
        raise TopologyError(f"the TPU compiler is not installed: {pip_line('tpu')}")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": topology.groups} if topology.groups > 1 else {}
    if topology.chip.name == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)
    except Exception as error:  # the plugin raises whatever it likes
        raise TopologyError(f"the TPU compiler refuses {topology.name}: {str(error).splitlines()[0]}") from error
    if len(description.devices) != topology.devices:
        raise TopologyError(f"{topology.name} has {len(description.devices)} devices for the TPU compiler")
    return mesh_lib.make_mesh(shape, description.devices)


def groups(mesh: Mesh, topology: Topology) -> list[int]:
    """The slice (TPU) or node (GPU) of each device of the mesh, in its order."""
    places = mesh.devices.reshape(-1)
    if topology.chip.is_tpu:
        return [getattr(device, "slice_index", 0) for device in places]
    return [place // topology.size for place in range(len(places))]


def compile_program(program: Program, topology: Topology) -> Compiled:
    """Compiles one program. A program that does not fit into memory is a result; every other error is raised.

    For GPUs the program is lowered for CUDA, to prove that it can be, and compiled by XLA:CPU for as many simulated
    devices. Memory and traffic of the CPU program stand as an estimate.
    """
    start = time.perf_counter()
    traced = program.trace()
    flops = count(traced.jaxpr)
    with jax.set_mesh(program.mesh):
        if not topology.chip.is_tpu:
            traced.lower(lowering_platforms=("cuda",))
        lowered = traced.lower()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            asked = asked_bytes(str(error))
            if asked is None:
                raise
            return Compiled(asked, None, flops, time.perf_counter() - start)
    traffic = _traffic(program, compiled.as_text())
    return Compiled(peak_bytes(compiled.memory_analysis()), traffic, flops, time.perf_counter() - start)


def schedule_program(program: Program, job: Job) -> Compiled:
    """Compiles a program for a TPU up to schedule and memory layout, without machine code; `job` is that program."""
    start = time.perf_counter()
    with Compilation(job) as compilation:
        flops = count(program.trace().jaxpr)
        try:
            found = compilation.result()
        except CompilerError as error:
            asked = asked_bytes(str(error))
            if asked is None:
                raise
            return Compiled(asked, None, flops, time.perf_counter() - start)
    return Compiled(found.peak_bytes, _traffic(program, found.text), flops, time.perf_counter() - start)


def _traffic(program: Program, text: str) -> Traffic:
    traffic = count_traffic(text)
    if traffic.unknown_loops:
        logging.warning("%s: %d loops with unknown trips are counted once", program.name, traffic.unknown_loops)
    return traffic


def peak_bytes(stats: Any) -> int:
    """Peak of memory per device: the backend's figure, or the sum of its parts (XLA:CPU's lacks temporaries)."""
    parts = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    return int(max(getattr(stats, "peak_memory_in_bytes", 0), parts + stats.temp_size_in_bytes))


def asked_bytes(message: str) -> int | None:
    """The bytes that the compiler asked for in a refusal, or None if the message is about something else.

    Example: "... required for HLO temporaries (20.51G) exceeds ...".
    """
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    for pattern in (
        r"required[^()]*\(([\d.]+)([KMGT])i?B?\)",
        r"Used ([\d.]+)([KMGT])i?B? of",
        r"([\d.]+)([KMGT])i?B?\b",
    ):
        if found := re.search(pattern, message):
            return int(float(found[1]) * {"K": 1 << 10, "M": 1 << 20, "G": GIB, "T": 1 << 40}[found[2]])
    return 0
