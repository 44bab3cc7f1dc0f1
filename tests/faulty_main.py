"""`python -m irm_jax.main` for tests of several processes: with faults, and a record of the batches.

FAULTS="PROCESS:STEP:SIGNAL:FILE ...": when the metrics of STEP have arrived, while the next step runs, PROCESS sends
itself SIGNAL. It makes FILE first and does nothing if FILE exists, so a fault occurs once.
BATCHES=FOLDER: see `record_batches`.
"""

import hashlib
import json
import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from absl import app
from jax._src import cache_key
from quick_compilation import write_programs_whole

from irm_jax import main
from irm_jax.parallel import mesh as mesh_lib
from irm_jax.training import hooks

_require_finite, _to_global = hooks.require_finite, mesh_lib.to_global


def with_faults(values, step, checkpoints):
    _require_finite(values, step, checkpoints)
    for fault in os.environ["FAULTS"].split():
        process, at, name, file = fault.split(":")
        if int(process) == jax.process_index() and int(at) == step and not os.path.exists(file):
            pathlib.Path(file).touch()
            os.kill(os.getpid(), getattr(signal, name))


def record_batches(folder, patch=setattr):
    """Appends one line per batch to FOLDER/PROCESS: the digests of the batch blocks that this process has read."""

    def to_global(batch, layout):
        if isinstance(batch, dict):
            fields = [np.asarray(x) for x in jax.tree.leaves(batch)]
            digests = [
                hashlib.sha256(b"".join(x[r].tobytes() for x in fields)).hexdigest() for r in range(len(fields[0]))
            ]
            with open(pathlib.Path(folder) / str(jax.process_index()), "a") as file:
                file.write(json.dumps(digests) + "\n")
        return _to_global(batch, layout)

    patch(mesh_lib, "to_global", to_global)


def share_programs(patch=setattr):
    """Makes processes share kept programs that are for the same number of devices.

    The code of a CPU program does not depend on the process of a device. JAX leaves it out of the key on GPUs only.
    """
    options = cache_key._hash_serialized_compile_options
    patch(cache_key, "_hash_accelerator_config", lambda hash_obj, devices: None)
    patch(
        cache_key,
        "_hash_serialized_compile_options",
        lambda hash_obj, compile_options, strip_device_assignment=False: options(hash_obj, compile_options, True),
    )


if __name__ == "__main__":
    share_programs()
    write_programs_whole()
    record_batches(os.environ["BATCHES"])
    hooks.require_finite = with_faults
    app.run(main.main, flags_parser=main.parse)
