"""Stands in for the programs that the launch scripts call, by the name it is called under. Standard library only.

`stand_in.install(folder)` puts them on a PATH. What they share lies in the folder WORLD: `calls.jsonl` (every call with
its arguments and the variables that matter), `bucket/` (gs://bucket), `hosts/N/` (home folders of the slice's hosts),
the states of the slice, and `actions` (what the N-th start of the training does on a host: "exit STATUS",
"save STEP STATUS", "lost STATUS", "mistake STATUS", or "wait", which saves step 9 and exits with 1 at SIGTERM, as a
training does).
"""

import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

NAMES = ("gcloud", "xpk", "kubectl", "sbatch", "srun", "scontrol", "scancel", "python3", "training")
WORLD = pathlib.Path(os.environ.get("WORLD", "."))


def install(folder: pathlib.Path) -> None:
    folder.mkdir()
    for name in NAMES:
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {name} "$@"\n')
        program.chmod(0o755)


def record(name: str, arguments: list[str], **more: object) -> None:
    shown = ("JAX_", "SLURM_", "SRUN_", "HOST")
    environment = {key: value for key, value in os.environ.items() if key.startswith(shown)}
    line = json.dumps({"program": name, "arguments": arguments, "environment": environment, **more}) + "\n"
    with open(WORLD / "calls.jsonl", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(line)


def state(name: str, value: str | None = None) -> str:
    path = WORLD / name
    if value is not None:
        path.write_text(value)
    return path.read_text() if path.exists() else ""


def option(arguments: list[str], name: str) -> str:
    return next(a.partition("=")[2] for a in arguments if a.startswith(f"--{name}="))


def gcloud(arguments: list[str]) -> int:
    if arguments[:2] == ["storage", "ls"]:
        pattern = arguments[2].removeprefix("gs://bucket/")
        for path in sorted((WORLD / "bucket").glob(pattern)):
            print(f"gs://bucket/{path.relative_to(WORLD / 'bucket')}")
        return 0
    _, _, kind, verb, *rest = arguments
    if verb == "describe":
        print(state("node" if kind == "tpu-vm" else "queue"))
    elif verb == "create":
        state("node", "READY"), state("queue", "ACTIVE")
        for host in range(2):  # new machines: nothing is on them
            shutil.rmtree(WORLD / f"hosts/{host}", ignore_errors=True)
            (WORLD / f"hosts/{host}").mkdir(parents=True)
    elif verb == "delete":
        state("node", ""), state("queue", "")
    elif verb == "scp":
        for host in (WORLD / "hosts").iterdir():
            shutil.copy(rest[0], host)
    elif verb == "ssh":
        command = option(rest, "command")
        running = []
        for host in sorted((WORLD / "hosts").iterdir()):
            environment = {**os.environ, "HOME": str(host), "HOST": host.name}
            running.append(subprocess.Popen(["bash", "-c", command], cwd=host, env=environment))
        return next((status for process in running if (status := process.wait())), 0)
    return 0


def python3(arguments: list[str]) -> int:
    """Of a host: `-m uv venv` makes the interpreter that runs the training."""
    if arguments[:3] == ["-m", "uv", "venv"]:
        interpreter = pathlib.Path(arguments[-1], "bin/python")
        interpreter.parent.mkdir(parents=True)
        interpreter.write_text('#!/bin/sh\nexec training "$@"\n')
        interpreter.chmod(0o755)
    return 0


def training(arguments: list[str]) -> int:
    who = os.environ.get("HOST") or os.environ.get("SLURM_PROCID", "0")
    starts = WORLD / f"starts.{who}"
    with open(starts, "a") as file:
        file.write("*")
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
    stopped: list[int] = []
    (WORLD / f"training.{who}.pid").write_text(str(os.getpid()))
    actions = (WORLD / "actions").read_text().splitlines()
    action, *numbers = actions[len(starts.read_text()) - 1].split()
    if action == "wait":
        deadline = time.monotonic() + 20
        while not stopped and time.monotonic() < deadline:
            time.sleep(0.02)
        action, numbers = "save", ["9", "1" if stopped else "0"]
        record("stopped", [], times=len(stopped))
    if action == "save":
        workdir = arguments[arguments.index("--workdir") + 1]
        folder = workdir.replace("gs://bucket", str(WORLD / "bucket"))
        step = pathlib.Path(folder, "checkpoints", numbers.pop(0))
        step.mkdir(parents=True, exist_ok=True)
        (step / "commit_success.txt").touch()
    if action == "mistake":  # of one process; srun tells the higher status of those that it took along
        pathlib.Path(os.environ["IRM_JAX_MISTAKE"]).touch()
    if action == "lost":  # the slice is taken away under the run
        state("node", "PREEMPTED"), state("queue", "SUSPENDED")
    return int(numbers[0])


def srun(arguments: list[str]) -> int:
    command = arguments[next(i for i, a in enumerate(arguments) if not a.startswith("--")) :]
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_NNODES"])
    running = []
    for task in range(tasks):
        numbers = {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task % (tasks // nodes))}
        running.append(subprocess.Popen(command, env={**os.environ, **numbers}))
    return max(process.wait() for process in running)


def sbatch(arguments: list[str]) -> int:
    """Runs a copy of the script at once, with the options of its #SBATCH lines where the command line has no others."""
    at = next(i for i, a in enumerate(arguments) if not a.startswith("--"))
    copy = shutil.copy(arguments[at], WORLD / "slurm_script")
    lines = re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", pathlib.Path(copy).read_text(), re.MULTILINE)
    options = dict(lines) | {a.removeprefix("--").partition("=")[0]: a.partition("=")[2] for a in arguments[:at]}
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    job = {
        "SLURM_JOB_ID": "4711", "SLURM_SUBMIT_DIR": os.getcwd(), "SLURM_JOB_NODELIST": f"node[1-{nodes}]",
        "SLURM_NNODES": str(nodes), "SLURM_NTASKS": str(nodes * tasks), "SLURM_GPUS_ON_NODE": options["gpus-per-node"],
        "SLURM_CPUS_PER_TASK": options["cpus-per-task"],
    }  # fmt: skip
    record("job", [], options=options)
    os.chdir(WORLD)
    process = subprocess.Popen(["bash", copy, *arguments[at + 1 :]], env={**os.environ, **job})
    (WORLD / "batch.pid").write_text(str(process.pid))
    return process.wait()


def scontrol(arguments: list[str]) -> int:
    if arguments[:2] == ["show", "hostnames"]:
        first, last = map(int, re.findall(r"\d+", arguments[2]))
        print(*(f"node{n}" for n in range(first, last + 1)), sep="\n")
    return 0


def scancel(arguments: list[str]) -> int:
    for path in WORLD.glob("training.*.pid"):
        os.kill(int(path.read_text()), signal.Signals[f"SIG{option(arguments, 'signal')}"])
    return 0


if __name__ == "__main__":
    program, *given = sys.argv[1:]
    record(program, given, **({"input": sys.stdin.read()} if program == "kubectl" else {}))
    status = globals()[program](given) if program in globals() else 0
    sys.exit(status)
