"""`python -m irm_jax.main`, except that a process sends itself a signal while the step after a given one is running.

FAULTS="PROCESS:STEP:SIGNAL:FILE ...": only where FILE is not there yet; it is made first, so that a fault occurs once.
"""

import os
import pathlib
import signal
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from absl import app

from irm_jax import main, train

require_finite = train.require_finite


def faulty(values, step, checkpoints):
    require_finite(values, step, checkpoints)
    for fault in os.environ.get("FAULTS", "").split():
        process, at, name, file = fault.split(":")
        if int(process) == int(os.environ["JAX_PROCESS_ID"]) and int(at) == step and not os.path.exists(file):
            pathlib.Path(file).touch()
            os.kill(os.getpid(), getattr(signal, name))


if __name__ == "__main__":
    train.require_finite = faulty
    app.run(main.main, flags_parser=main.parse)
