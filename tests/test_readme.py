"""README.md and docs/ say nothing that is not there: paths, modules, configuration keys; and their pod commands fit."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from data_pipelines import options
from data_pipelines.batches import layout
from irm_jax.config import check, get_config, load

ROOT = Path(__file__).parents[1]
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in [ROOT / "README.md", *ROOT.glob("docs/*.md")]}
FILE_MAP = TEXTS["README.md"].split("## File map")[1].split("\n## ")[0]
SCRIPTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(ROOT.glob("launch/*.sh"))}
TABLES = "|".join(get_config())


def found(pattern: str) -> list[tuple[str, str]]:
    """(file, match) of everything that README.md and docs/ have of a pattern, each once."""
    return sorted({(name, match) for name, text in TEXTS.items() for match in re.findall(pattern, text)})


def paths() -> list[tuple[str, str]]:
    """Everything that is named as a path of the checkout."""
    rows = re.findall(r"^\| (`.*?) \|", FILE_MAP, re.MULTILINE)
    mapped = [("README.md", path) for row in rows for path in re.findall(r"`(.*?)`", row)]
    top = "configs|docs|tests|launch|benchmarks|irm_jax|data_pipelines"
    return [*mapped, *found(rf"(?<![\w/-])(?:{top})/[\w/]*(?:\w\.(?:py|sh|txt|md)\b|(?=`))")]


@pytest.mark.parametrize(("file", "path"), paths())
def test_path_exists(file: str, path: str) -> None:
    assert (ROOT / path).exists()


@pytest.mark.parametrize(("file", "module"), found(r"python -m\s+((?:irm_jax|data_pipelines|benchmarks)[\w.]+)"))
def test_module_can_be_run(file: str, module: str) -> None:
    assert importlib.util.find_spec(module) is not None


def keys() -> list[tuple[str, str]]:
    """Everything that is named as a key of the configuration."""
    named = {*found(r"\bconfig\.([a-z]\w*(?:\.\w+)*)"), *found(rf"`((?:{TABLES})(?:\.[a-z]\w*)+)[=`]")}
    named -= {("README.md", "a.b")}
    return sorted((name, key) for name, key in named if not key.endswith((".py", ".json", ".html")))


@pytest.mark.parametrize(("file", "key"), keys())
def test_configuration_key_exists(file: str, key: str) -> None:
    entry = get_config()
    *tables, last = key.split(".")
    for table in tables:
        entry = entry[table]
    assert last in entry


def commands() -> list[tuple[str, str]]:
    """(file, command) of every training that is started on a pod or cluster; comments of a script are commands too."""
    lines = []
    for name, text in (TEXTS | SCRIPTS).items():
        plain = re.sub(r"^#  ?", "", text, flags=re.MULTILINE) if name.startswith("launch/") else text
        for line in plain.replace("\\\n", " ").splitlines():
            if re.search(r"launch/(?:tpu_vm|gke|slurm)\.sh +configs/", line):
                lines.append((name, re.sub(r" +", " ", line.split(" # ")[0].strip())))
    return lines


def chips(words: dict[str, str]) -> int:
    """Devices that a command's own variables and options name."""
    if "--nodes" in words:
        each = re.search(r"#SBATCH --gpus-per-node=(\d+)", SCRIPTS["launch/slurm.sh"])
        assert each is not None
        return int(words["--nodes"]) * int(words.get("--gpus-per-node", each[1]))
    kind = words.get("ACCELERATOR", words.get("TPU_TYPE", ""))
    number = re.fullmatch(r"v5litepod-(\d+)", kind)  # other types count cores, or have a topology beside them
    assert number is not None, kind
    return int(number[1]) * int(words.get("SLICES", "1"))


def configured(command: str) -> ConfigDict:
    """The configuration of a command; folders, which are somebody's buckets, are left out."""
    words = shlex.split(command)
    file = next(word for word in words if word.startswith("configs/"))
    config: ConfigDict = load(str(ROOT / file))
    for word in words:
        if word.startswith("--config.") and not word.startswith(("--config.data.vocab=", "--config.data.dir=")):
            key, value = word.removeprefix("--config.").split("=", 1)
            config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    return config


def test_the_pod_commands_are_found() -> None:
    assert [name for name, _ in commands()] == ["README.md"] * 3 + sorted(SCRIPTS)[:1] + [
        "launch/slurm.sh", "launch/tpu_vm.sh",
    ]  # fmt: skip


@pytest.mark.parametrize(("file", "command"), commands())
def test_a_pod_command_has_a_batch_for_its_chips(file: str, command: str) -> None:
    """Blocks divide over the devices, whole people fill the rows, the rest of the configuration stands."""
    words = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
    config, devices = configured(command), chips(words)
    assert check.block_problem(config, devices) is None
    units, d = options.units_of(config), config.data
    assert layout.next_batch_size(units, d.batch_size, d.batch_blocks) == d.batch_size
    assert d.batch_blocks == devices, "a batch of no more rows than it must have"
    assert config.model.dtype == "bfloat16"
    assert "--config.data.vocab" in words, "real captions need another vocabulary than the built-in one"
    check.check(config)


def test_what_a_pod_command_lacks_is_named() -> None:
    config = configured("launch/slurm.sh configs/irm_pp.py /shared/a")
    problem = check.block_problem(config, 256)
    assert problem is not None
    assert "set --config.data.batch_blocks=256 --config.data.batch_size=9728" in problem
