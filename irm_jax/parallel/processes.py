"""Several processes run one program: how they find each other, which of them writes, and how they agree.

Every host of a pod or cluster runs the same command. The environment says which process this one is:

1. `JAX_COORDINATOR_ADDRESS` (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (from 0), all three;
2. without them, what JAX finds out from a cluster: Slurm's steps, Cloud TPU, Open MPI, Kubernetes with its package;
3. otherwise this process is alone, as it is with JAX_NUM_PROCESSES=1 wherever it runs.

A process that dies stops answering; after HEARTBEAT seconds JAX ends the others too (SIGABRT, with a message), so that
whatever started them can start all again. Process 0 is the coordinator and writes everything but checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax._src import clusters, distributed
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax.errors import RetryError, UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
HEARTBEAT = 20
"""Seconds without an answer after which a process counts as dead (JAX's own 100 leave survivors hanging for 94 s)."""
SHUTDOWN = 15
"""Seconds that a process which ends, by an error say, waits for the others to end as well."""
LONGEST_WAIT = 24 * 3600
"""Seconds at a barrier. What ends the wait when another process dies is its silence, not this."""


class ProcessesError(UserError, ValueError):
    """The environment does not say which process this is; the message names the variables."""


class ProcessesLost(RetryError, RuntimeError):
    """The processes did not find each other in time. Another start may be luckier: no mistake in the configuration."""


@dataclasses.dataclass(frozen=True)
class Place:
    """This process among all: `coordinator` HOST:PORT, `count` >= 2, 0 <= `index` < `count`."""

    coordinator: str
    count: int
    index: int


def place(environ: Mapping[str, str]) -> Place | None:
    """What the three variables say; None if they leave it to the cluster, or say one process.

    Raises ProcessesError if some of them are missing or none of their values is possible.
    """
    found = {name: environ[name] for name in (ADDRESS, COUNT, INDEX) if environ.get(name)}
    if found.get(COUNT) == "1" or not found.keys() & {COUNT, INDEX}:
        return None  # an address alone is what JAX's own detection is told
    missing = [name for name in (ADDRESS, COUNT, INDEX) if name not in found]
    if missing:
        raise ProcessesError(
            f"{', '.join(found)} set without {' and '.join(missing)}: set {ADDRESS} (HOST:PORT of process 0), {COUNT} "
            f"and {INDEX} in every process, or none of them"
        )
    host, _, port = found[ADDRESS].rpartition(":")
    if not host or not port.isdecimal():
        raise ProcessesError(f"{ADDRESS} = {found[ADDRESS]!r} is not HOST:PORT of process 0, say 10.0.0.2:8476")
    for name in (COUNT, INDEX):
        if not found[name].isdecimal():
            raise ProcessesError(f"{name} = {found[name]!r} is no whole number")
    count, index = int(found[COUNT]), int(found[INDEX])
    if not index < count:
        raise ProcessesError(f"{INDEX} = {index} must be below {COUNT} = {count}: processes count from 0")
    return Place(found[ADDRESS], count, index)


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the processes that the environment tells of; nothing if this one is alone.

    Call it before anything asks JAX for a device. Raises ProcessesError, and ProcessesLost if the others do not answer.
    """
    here = place(environ)
    if here is not None:
        arguments: dict[str, Any] = {
            "coordinator_address": here.coordinator, "num_processes": here.count, "process_id": here.index,
            "cluster_detection_method": "deactivate",  # Slurm's would take all devices but one of the host away
        }  # fmt: skip
    elif environ.get(COUNT) == "1" or (cluster := _cluster()) is None:
        if environ.get(ADDRESS) and environ.get(COUNT) != "1":
            raise ProcessesError(f"{ADDRESS} is set without {COUNT} and {INDEX}, and no cluster is here to tell them")
        return
    elif cluster.get_process_count() == 1:
        return
    else:
        arguments = {}
    # Its handler of SIGTERM would take the place of ours; `Votes` says what it would say.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT, shutdown_timeout_seconds=SHUTDOWN)
    except RuntimeError as error:
        where = f"process {here.index} of {here.count}, coordinator {here.coordinator}" if here else "the cluster"
        raise ProcessesLost(
            f"the processes did not find each other ({where}): {str(error).splitlines()[0]}. Do all of them run, can "
            f"they reach the coordinator, and is its port free?"
        ) from error
    logging.info(
        "process %d of %d; %d of %d devices are here",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip


def _cluster() -> Any | None:
    """JAX's description of the cluster that started this process, the one that `initialize` would choose."""
    known = (kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return next((kind for kind in known if kind.is_env_present()), None)


def alone() -> bool:
    """Whether this process is the only one. Touches no device then."""
    return distributed.global_state.client is None


def is_main() -> bool:
    """Whether this is process 0, which writes logs, reports and results."""
    return alone() or jax.process_index() == 0


_numbers = itertools.count()


def barrier(name: str) -> None:
    """Returns once every process is here. All must pass the same barriers in the same order."""
    client = distributed.global_state.client
    if client is not None:  # not on the devices: they would be busy with waiting
        client.wait_at_barrier(f"irm_jax/{next(_numbers)}/{name}", timeout_in_ms=LONGEST_WAIT * 1000)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Process 0 runs the body, then all others at once: what it builds, they find."""
    if not is_main():
        barrier(name)
    try:
        yield
    finally:
        if is_main():
            barrier(name)


def any_of_them(value: bool) -> bool:
    """Whether `value` is true in any process: the same answer in all. Waits for them."""
    return value if alone() else bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


class Votes:
    """Whether any process wants to stop, the same answer in all of them at the same step, and without waiting.

    A vote is a number on each device that a tiny program sums after the step; the sum is read one step later, when
    the step's metrics are. Where a process is alone, its own wish counts at once.
    """

    def __init__(self, mesh: Mesh, wish: Callable[[], bool]) -> None:
        """`wish`: what this process wants now."""
        self._wish, self._alone = wish, alone()
        self._everywhere = NamedSharding(mesh, P(mesh.axis_names))
        self._count = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
        self._size, self._stop = mesh.size, False

    @property
    def stop(self) -> bool:
        """Whether some vote that was read asked to stop."""
        return self._wish() if self._alone else self._stop

    def cast(self) -> jax.Array | None:
        """Gives this process's vote of now. All processes must call it equally often."""
        if self._alone:
            return None
        vote = np.full(self._size, self._wish(), np.int32)
        return self._count(jax.make_array_from_callback((self._size,), self._everywhere, lambda index: vote[index]))

    def read(self, vote: jax.Array | None) -> None:
        """Takes the outcome of a vote into account; waits until all have cast it."""
        self._stop = self._stop or (vote is not None and int(vote) > 0)

    def decide(self) -> bool:
        """Casts and reads at once."""
        self.read(self.cast())
        return self.stop
