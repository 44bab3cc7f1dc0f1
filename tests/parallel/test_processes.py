"""Several processes on the loopback interface, started by launch/one_machine.sh, against one process.

Four devices in all, whoever holds them. The small runs have a memory bank and a caption queue.
"""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from faulty_main import record_batches, share_programs
from PIL import Image
from quick_compilation import few_optimizations

from irm_jax import checkpoint, modes
from irm_jax.errors import RetryError, UserError
from irm_jax.evaluation.figures import read_results
from irm_jax.parallel import processes
from irm_jax.parallel.processes import ProcessesError, ProcessesLost, place_from_environment
from irm_jax.training import loop

ROOT = Path(__file__).resolve().parents[2]
DEVICES, STEPS, STOPPED = 4, 6, 4
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476"}


def test_the_environment_says_which_process_this_is():
    three = {**ADDRESS, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
    assert place_from_environment(three) == processes.ProcessPlace("10.0.0.2:8476", 4, 3)
    assert place_from_environment({}) is None
    assert place_from_environment({**three, "JAX_NUM_PROCESSES": "1"}) is None


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({**ADDRESS, "JAX_NUM_PROCESSES": "4"}, "without JAX_PROCESS_ID"),
        ({"JAX_PROCESS_ID": "0"}, "without JAX_COORDINATOR_ADDRESS and JAX_NUM_PROCESSES"),
        ({**ADDRESS, "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "4"}, "count from 0"),
        ({**ADDRESS, "JAX_NUM_PROCESSES": "four", "JAX_PROCESS_ID": "0"}, "JAX_NUM_PROCESSES = 'four'"),
        ({"JAX_COORDINATOR_ADDRESS": "host", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "0"}, "HOST:PORT"),
    ],
)
def test_half_of_an_answer_is_an_error(environ, message):
    with pytest.raises(ProcessesError, match=message):
        place_from_environment(environ)


def test_an_address_needs_a_cluster_that_tells_the_rest(monkeypatch):
    monkeypatch.setattr(processes, "_cluster", lambda: None)
    with pytest.raises(ProcessesError, match="no cluster"):
        processes.start(ADDRESS)


def test_processes_that_do_not_answer_are_worth_another_start(monkeypatch):
    def initialize(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: nobody is there\nand more")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    three = {**ADDRESS, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    with pytest.raises(RetryError, match=r"process 1 of 2, coordinator 10.0.0.2:8476.*nobody is there. Do"):
        processes.start(three)
    assert not issubclass(processes.ProcessesLost, UserError)  # whose status 2 no launcher tries again


START = "from irm_jax.parallel import processes; processes.start()"


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_the_others_leave_alone_ends_with_a_message_in_time(index):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    three = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
    done = subprocess.run(
        [sys.executable, "-c", f"from absl import logging; logging.set_verbosity(0); {START}"], cwd=ROOT, text=True,
        env={**os.environ, **three, "JAX_INITIALIZATION_TIMEOUT": "1"}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"process {index} of 2, coordinator {address}): not all have come. Do all of them run" in done.stderr
    said = f"joining as process {index} of 2, coordinator {address}; a process that is aborted here has a number that"
    assert said in done.stderr


def test_a_port_that_another_program_uses_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        three = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        with pytest.raises(ProcessesLost, match=f"cannot listen on port {port} of this machine .* another port"):
            processes.start(three)


def test_the_time_to_wait_for_others_is_a_number_of_seconds():
    three = {**ADDRESS, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for text in ("soon", "0", "-1"):
        with pytest.raises(ProcessesError, match=f"JAX_INITIALIZATION_TIMEOUT = '{text}' is not a number of seconds"):
            processes.start({**three, "JAX_INITIALIZATION_TIMEOUT": text})


def test_a_cluster_of_one_process_is_left_alone(monkeypatch):
    slurm = {"JOB_ID": "7", "STEP_NODELIST": "node1", "NTASKS": "1", "PROCID": "0", "LOCALID": "0"}
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    processes.start({})
    assert processes.alone()
    assert not jax.distributed.is_initialized()


def test_alone_a_wish_counts_at_once():
    wish = []
    votes = processes.StopConsensus(jax.make_mesh((8,), ("data",)), lambda: bool(wish))
    assert votes.cast() is None
    assert not votes.stop
    wish.append(1)
    assert votes.stop
    assert votes.decide()


def test_the_launcher_says_who_died_and_starts_all_again(tmp_path):
    python, log, again = tmp_path / "python", tmp_path / "log", tmp_path / "again"
    python.write_text(
        f"""#!/bin/sh
        if [ "$1" = -c ]; then echo 4242; exit; fi
        echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES at $JAX_COORDINATOR_ADDRESS: $*" >> {log}
        if [ -e {again} ]; then exit 0; fi
        if [ "$JAX_PROCESS_ID" = 1 ]; then kill -9 $$; fi
        sleep 1; touch {again}; exit 3
        """
    )
    python.chmod(0o755)
    done = subprocess.run(
        [ROOT / "launch/one_machine.sh", "c.py", tmp_path / "run", "--config.seed=1"], capture_output=True, text=True,
        env={**os.environ, "PYTHON": str(python), "PROCESSES": "3"}, timeout=60, check=True,
    )  # fmt: skip
    said = [line.partition(": ")[2] for line in done.stderr.splitlines() if "one_machine.sh: p" in line]
    assert said[0] == "process 1 of 3 ended by SIGKILL"
    assert sorted(said[1:]) == [f"process {number} of 3 ended with status 3" for number in (0, 2)]
    assert "the run ended with status 137; starting it again" in done.stderr
    arguments = f"-m irm_jax.main --config c.py --workdir {tmp_path / 'run'} --config.seed=1"
    expected = [f"{number} of 3 at 127.0.0.1:4242: {arguments}" for number in (0, 1, 2)]
    assert sorted(log.read_text().splitlines()) == sorted(2 * expected)


@pytest.fixture(scope="module")
def config(make_run_config):
    config = make_run_config()
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_trad", "procedural_t2i"}:
            del config.data.train[name]
        del config.evaluation.sets["procedural_ctcc"]
    config.data.train.procedural_trad.update({"images_per_identity": 2, "share": 2.0})
    config.data.batch_size = 8 * 3
    config.model.update({"fusion_depth": None, "editing_depth": 1})
    config.loss.matching_weight = 0.0
    config.memory_bank.update({"size": 3 * config.data.batch_size, "soft_weight": 0.0})
    config.mesh.data = DEVICES
    config.train.steps = STEPS
    config.checkpoint.every = 0  # only what a signal or the end saves
    return config


@pytest.fixture(scope="module")
def one_process(config, first_devices, tmp_path_factory):
    """The folder of the straight run, made here, and of its batches."""
    workdir, batches = tmp_path_factory.mktemp("straight"), tmp_path_factory.mktemp("batches")
    with pytest.MonkeyPatch.context() as patch, few_optimizations():
        share_programs(patch.setattr)
        with patch.context() as recorded:
            record_batches(batches, recorded.setattr)
            modes.train(config, workdir)
        yield workdir, batches


@pytest.fixture(scope="module")
def launch(config, tmp_path_factory):
    """Runs launch/one_machine.sh: (processes, workdir, faults, failures allowed, flags) -> (status, output, batches)"""
    folder = tmp_path_factory.mktemp("launch")
    (folder / "config.py").write_text(
        f"from ml_collections import ConfigDict\n\n\ndef get_config():\n    return ConfigDict({config.to_dict()!r})\n"
    )
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\nshift 2  # -m irm_jax.main\n'
        f'exec {sys.executable} {ROOT / "tests/faulty_main.py"} "$@"\n'
    )
    python.chmod(0o755)

    def run(count, workdir, faults=(), max_failures=1, flags=()):
        batches = tmp_path_factory.mktemp("batches")
        files = [f"{fault}:{batches}/fault{number}" for number, fault in enumerate(faults)]
        environ = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
            "PYTHON": str(python), "PROCESSES": str(count), "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
            "MAX_FAILURES": str(max_failures), "FAULTS": " ".join(files), "BATCHES": str(batches),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "GLIBC_TUNABLES": "glibc.malloc.arena_max=8",
        }  # fmt: skip
        command = [ROOT / "launch/one_machine.sh", folder / "config.py", workdir, *flags]
        done = subprocess.run(command, env=environ, stderr=subprocess.PIPE, text=True, timeout=600, check=False)
        print(done.stderr)
        return done.returncode, done.stderr, batches

    return run


@pytest.fixture(scope="module")
def stopped(one_process, launch, tmp_path_factory):
    """What four processes leave when SIGTERM has reached one of them: (workdir, status, output, batches)."""
    workdir = tmp_path_factory.mktemp("four")
    return workdir, *launch(4, workdir, faults=["3:1:SIGTERM"])


def read_batches(folder, last=STEPS):
    """[`last` steps][digests of all blocks, in order of the processes]"""
    files = sorted(path for path in folder.iterdir() if path.name.isdigit())
    lines = [[json.loads(line) for line in path.read_text().splitlines()[-last:]] for path in files]
    return [list(itertools.chain(*parts)) for parts in zip(*lines, strict=True)]


def logged(workdir):
    """{step: {name: value}} of the losses and other figures of the model."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {r["step"]: {k: v for k, v in r.items() if "/" in k or k in ("loss", "gradient_norm")} for r in records}


def assert_same_losses(workdir, straight, steps):
    found, expected = logged(workdir), logged(straight)
    assert sorted(found) == list(steps)
    for step in steps:
        assert found[step].keys() == expected[step].keys()
        for name, value in expected[step].items():
            np.testing.assert_allclose(found[step][name], value, rtol=1e-6, atol=1e-7, err_msg=f"step {step}: {name}")


def assert_same_evaluation(config, workdir):
    """The evaluation of several processes, which is in the workdir, against that of one."""
    together = read_results(workdir).figures
    modes.evaluate(config, workdir)
    alone = read_results(workdir).figures
    assert all(figure.queries for figure in together if figure.system == "model")
    assert together == alone != ()


def test_sigterm_to_one_of_two_and_a_restart_change_nothing(one_process, launch, config, tmp_path):
    straight, whole = one_process
    workdir = tmp_path / "two"
    status, output, batches = launch(2, workdir, faults=["1:1:SIGTERM"], max_failures=2)
    assert status == 0
    assert output.count(f"after step {STOPPED}; the state is saved in") == 2
    assert output.count("stopped by SIGTERM") == output.count("stopped by another process") == 1
    assert "starting it again" in output
    assert output.count(f"resumed from step {STOPPED} of") == 1  # said by process 0
    assert_same_losses(workdir, straight, range(1, STEPS + 1))
    assert read_batches(batches) == read_batches(whole)
    assert len(json.loads((workdir / "run.json").read_text())) == 2
    assert len(list((workdir / "tensorboard").iterdir())) == 2
    assert_same_evaluation(config, workdir)


@pytest.mark.nightly
def test_sigterm_to_one_of_four_makes_all_save_the_same_step(stopped, one_process):
    workdir, status, output, batches = stopped
    straight, whole = one_process
    assert status == 1
    assert checkpoint.saved_steps(workdir / loop.CHECKPOINTS) == [STOPPED]
    assert output.count(f"after step {STOPPED}; the state is saved in") == 4
    assert output.count("stopped by SIGTERM") == 1
    assert output.count("stopped by another process") == 3
    assert_same_losses(workdir, straight, range(1, STOPPED + 1))
    assert read_batches(batches) == read_batches(whole)[:STOPPED]
    assert len(json.loads((workdir / "run.json").read_text())) == 1
    assert len(list((workdir / "tensorboard").iterdir())) == 1


@pytest.mark.nightly
def test_one_process_goes_on_from_the_checkpoint_of_four(stopped, one_process, config, tmp_path):
    workdir = tmp_path / "one"
    shutil.copytree(stopped[0], workdir)
    modes.train(config, workdir)
    assert_same_losses(workdir, one_process[0], range(1, STEPS + 1))


@pytest.mark.nightly
def test_a_killed_process_ends_the_other_and_a_restart_resumes(stopped, one_process, launch, config, tmp_path):
    workdir = tmp_path / "two"
    shutil.copytree(stopped[0], workdir)
    status, output, batches = launch(2, workdir, faults=["1:5:SIGKILL"], max_failures=2)
    assert status == 0
    assert "process 1 of 2 ended by SIGKILL" in output
    assert "process 0 of 2 ended" in output
    assert "process 0 of 2 ended by SIGKILL" not in output  # by itself, within the launcher's 30 seconds
    assert "starting it again" in output
    assert output.count(f"resumed from step {STOPPED} of") == 2
    assert_same_losses(workdir, one_process[0], range(1, STEPS + 1))
    left = STEPS - STOPPED
    assert read_batches(batches, left) == read_batches(one_process[1], left)
    assert_same_evaluation(config, workdir)


@pytest.mark.nightly
def test_two_processes_embed_and_evaluate_to_the_digits_of_one(one_process, launch, tmp_path):
    """As commands of their own, with as many devices in all; the second batch of pictures is not full."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(70):
        pixels = rng.integers(0, 255, (64, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"pictures/{number:02d}.png")
    embed = ["--mode=embed", f"--config.embed.images={tmp_path}/pictures"]
    search = ["--config.embed.text_to_image=True", "--config.embed.instruction=a red shirt"]
    found = {}
    for count in (1, 2):
        workdir = tmp_path / str(count)
        shutil.copytree(one_process[0] / loop.CHECKPOINTS, workdir / loop.CHECKPOINTS)
        for name, flags in {"images": embed, "search": [*embed, *search], "figures": ["--mode=evaluate"]}.items():
            status, output, _ = launch(count, workdir, flags=flags)
            assert status == 0, output
            if name == "figures":
                found[count, name] = read_results(workdir).figures
            else:
                with np.load(workdir / "embeddings.npz") as file:
                    found[count, name] = {key: file[key].tolist() for key in file.files}
        assert len(list((workdir / "evaluations").glob("step-*"))) == 1  # process 0 wrote it
    assert len(found[1, "images"]["embeddings"]) == 70
    for name in ("images", "search", "figures"):
        assert found[2, name] == found[1, name], name
