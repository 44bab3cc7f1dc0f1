"""The process in which `scheduled.Compilation` compiles: it makes the program of a job again and dumps what XLA has."""

from __future__ import annotations

import pickle
import shutil
import sys
from pathlib import Path

import jax

from data_pipelines import child_processes
from irm_jax import run as runs
from irm_jax.compile import programs, targets
from irm_jax.compile.scheduled import ERROR, JOB, Job


def main(folder: Path) -> None:
    """Compiles the job in the folder; the compiler writes its files there, and a refusal is written to ERROR."""
    job: Job = pickle.loads((folder / JOB).read_bytes())
    mesh = targets.make_mesh(job.config.mesh, job.topology)
    program = programs.STEPS[job.step](runs.planned(job.config, mesh))[job.number]
    with jax.set_mesh(mesh):
        try:
            program.lower().compile(compiler_options={"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True})
        except jax.errors.JaxRuntimeError as error:
            (folder / "error.part").write_text(str(error), "utf-8")
            (folder / "error.part").replace(folder / ERROR)  # whole or not at all


if __name__ == "__main__":
    scratch, parent = Path(sys.argv[1]), int(sys.argv[2])
    # Killed, the parent cannot remove what is dumped here.
    child_processes.end_with_parent(parent, last=lambda: shutil.rmtree(scratch, ignore_errors=True))
    main(scratch)
