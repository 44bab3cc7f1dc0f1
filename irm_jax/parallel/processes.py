"""Programs of several processes: how they find each other, which of them writes, and how they agree to stop.

Every host of a pod or cluster runs the same command. Which process this one is, is said by:

1. `JAX_COORDINATOR_ADDRESS` (HOST:PORT of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` (from 0), all three set;
2. otherwise a cluster that JAX detects: Slurm, Cloud TPU, Open MPI, Kubernetes with its package;
3. otherwise nothing: the process is alone. With JAX_NUM_PROCESSES=1 it is alone wherever it runs.

Where the others have not come within JAX_INITIALIZATION_TIMEOUT seconds (300), a process ends with a message and status
1, which launchers try again.

A process that dies stops sending heartbeats; after HEARTBEAT_TIMEOUT seconds JAX ends the others too (SIGABRT, with a
message), so that the launcher can start all of them again. Process 0 is the coordinator and writes everything but the
arrays of checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax._src import clusters, distributed  # no public API detects a cluster or waits at a barrier off the devices
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from irm_jax.errors import RetryError, UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TIMEOUT = "JAX_INITIALIZATION_TIMEOUT"
HEARTBEAT_TIMEOUT = 20
"""Seconds without a heartbeat after which a process counts as dead. JAX's default of 100 keeps the others waiting."""
SHUTDOWN_TIMEOUT = 15
"""Seconds that a process which ends, for example by an error, waits for the others to end."""
BARRIER_TIMEOUT = 24 * 3600
"""Seconds at a barrier. When another process dies, its missing heartbeat ends the wait earlier."""


class ProcessesError(UserError, ValueError):
    """The environment does not say which process this is; the message names the variables."""


class ProcessesLost(RetryError, RuntimeError):
    """The processes did not find each other in time; the configuration may be right, so another start may succeed."""


@dataclasses.dataclass(frozen=True)
class ProcessPlace:
    """This process among all: `coordinator` is HOST:PORT, `count` >= 2, 0 <= `index` < `count`."""

    coordinator: str
    count: int
    index: int


def place_from_environment(environ: Mapping[str, str]) -> ProcessPlace | None:
    """Reads the three variables; None if they leave the answer to the cluster, or name a single process.

    Raises ProcessesError if only some of them are set, or to impossible values.
    """
    found = {name: environ[name] for name in (ADDRESS, COUNT, INDEX) if environ.get(name)}
    if found.get(COUNT) == "1" or not found.keys() & {COUNT, INDEX}:
        return None  # JAX's own detection takes an address alone
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
            raise ProcessesError(f"{name} = {found[name]!r} is not a number")
    count, index = int(found[COUNT]), int(found[INDEX])
    if not index < count:
        raise ProcessesError(f"{INDEX} = {index} must be below {COUNT} = {count}: processes count from 0")
    return ProcessPlace(found[ADDRESS], count, index)


def start(environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes; does nothing if this process is alone. To be called before JAX is asked for a device.

    Raises ProcessesError, and ProcessesLost if the others do not answer.
    """
    here = place_from_environment(environ)
    if here is not None:
        if here.index == 0:
            _require_free_port(here.coordinator)
        arguments: dict[str, Any] = {
            "coordinator_address": here.coordinator, "num_processes": here.count, "process_id": here.index,
            "cluster_detection_method": "deactivate",  # Slurm's would leave one device of the host visible
        }  # fmt: skip
    elif environ.get(COUNT) == "1" or (cluster := _cluster()) is None:
        if environ.get(ADDRESS) and environ.get(COUNT) != "1":
            raise ProcessesError(
                f"{ADDRESS} is set without {COUNT} and {INDEX}, and no cluster is here that says them: set all three"
            )
        return
    elif cluster.get_process_count() == 1:
        return
    else:
        arguments = {}
    # JAX's handler of SIGTERM would replace ours; StopConsensus does its work.
    jax.config.update("jax_enable_preemption_service", False)
    seconds = _timeout(environ)
    where = f"process {here.index} of {here.count}, coordinator {here.coordinator}" if here else "the cluster"
    lost = (
        f"the processes did not find each other ({where}): {{}}. Do all of them run, can they reach the coordinator, "
        f"and is its port free? They wait {seconds} s for each other; {TIMEOUT} sets that"
    )
    # Said before: where processes do not agree, JAX's C++ ends this one by an abort that no exception reaches.
    logging.info(
        "joining as %s; a process that is aborted here has a number that another one has, or another %s", where, COUNT
    )
    try:
        with _ended_after(seconds, lost.format("not all have come")):
            jax.distributed.initialize(
                **arguments, initialization_timeout=seconds + _SLACK, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
                shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
            )  # fmt: skip
    except RuntimeError as error:
        raise ProcessesLost(lost.format(str(error).splitlines()[0])) from error
    logging.info(
        "process %d of %d; it holds %d of %d devices",
        jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
    )  # fmt: skip


def _require_free_port(address: str) -> None:
    """Raises ProcessesLost if process 0 cannot listen there: JAX crashes instead, without a word."""
    port = int(address.rpartition(":")[2])
    try:
        if socket.has_dualstack_ipv6():
            socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True).close()
        else:
            socket.create_server(("", port)).close()
    except (OSError, OverflowError) as error:
        raise ProcessesLost(
            f"process 0 cannot listen on port {port} of this machine ({error}): end what uses it, or name another port "
            f"in {ADDRESS} of every process"
        ) from error


_SLACK = 60
"""Seconds by which JAX waits longer than we do: its own end is an abort, without a word of what to do."""


def _timeout(environ: Mapping[str, str]) -> int:
    text = environ.get(TIMEOUT) or "300"
    if not text.isdecimal() or int(text) < 1:
        raise ProcessesError(f"{TIMEOUT} = {text!r} is not a number of seconds")
    return int(text)


@contextlib.contextmanager
def _ended_after(seconds: int, message: str) -> Iterator[None]:
    """Ends this process with the message and status 1 if the body takes longer: it waits within JAX, which no
    exception reaches, and nothing is open yet."""

    def end() -> None:
        logging.error("%s", message)
        logging.flush()
        sys.stderr.flush()
        os._exit(RetryError.exit_status)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _cluster() -> Any | None:
    """The cluster that `jax.distributed.initialize` would detect, or None."""
    known = (kind for kind in clusters.ClusterEnv._cluster_types if not kind.opt_in_only_method)
    return next((kind for kind in known if kind.is_env_present()), None)


def alone() -> bool:
    """Whether this process is the only one. Does not initialise the devices if so."""
    return not jax.distributed.is_initialized()


def is_main() -> bool:
    """Whether this is process 0, which writes logs, reports and results."""
    return alone() or jax.process_index() == 0


_barriers = itertools.count()


def barrier(name: str) -> None:
    """Waits until every process is here. All processes must pass the same barriers in the same order.

    The wait is on the coordinator, not on the devices, which would be busy meanwhile.
    """
    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"irm_jax/{next(_barriers)}/{name}", timeout_in_ms=BARRIER_TIMEOUT * 1000)


@contextlib.contextmanager
def main_first(name: str) -> Iterator[None]:
    """Runs the body in process 0, then in all others at once, which find what it has built."""
    if not is_main():
        barrier(name)
    try:
        yield
    finally:
        if is_main():
            barrier(name)


def any_process(value: bool) -> bool:
    """Whether `value` is true in any process; the same answer in all. Waits for all of them."""
    return value if alone() else bool(np.any(multihost_utils.process_allgather(np.asarray(value))))


def smallest(value: int) -> int:
    """The smallest `value` of all processes; the same answer in all. Waits for all of them, however long."""
    if alone():
        return value
    barrier("smallest")  # a collective on CPUs gives up after half a minute
    return int(np.min(multihost_utils.process_allgather(np.asarray(value))))


class StopConsensus:
    """Lets all processes stop after the same step when any of them wants to, without waiting for each other.

    Each process puts its vote on its devices; a small program sums the votes after the step, and the sum is read one
    step later, together with the step's metrics. In a process that is alone, its own wish counts at once.
    """

    def __init__(self, mesh: Mesh, wants_stop: Callable[[], bool]) -> None:
        """`wants_stop` says whether this process wants to stop now."""
        self._wants_stop, self._alone = wants_stop, alone()
        self._votes = NamedSharding(mesh, P(mesh.axis_names))
        self._sum = jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, P()))
        self._size, self._stop = mesh.size, False

    @property
    def stop(self) -> bool:
        """Whether the processes have agreed to stop, as far as votes were read."""
        return self._wants_stop() if self._alone else self._stop

    def cast(self) -> jax.Array | None:
        """Casts this process's vote and returns the sum of all, not yet waited for. All must call it equally often."""
        if self._alone:
            return None
        vote = np.full(self._size, self._wants_stop(), np.int32)
        return self._sum(jax.make_array_from_callback((self._size,), self._votes, lambda index: vote[index]))

    def read(self, votes: jax.Array | None) -> None:
        """Takes a sum of votes into account; waits until all processes have cast theirs."""
        self._stop = self._stop or (votes is not None and int(votes) > 0)

    def decide(self) -> bool:
        """Casts, reads, and returns whether to stop."""
        self.read(self.cast())
        return self.stop
