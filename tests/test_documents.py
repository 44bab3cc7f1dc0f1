"""README.md and docs/ name nothing that does not exist: paths, modules, keys, links; and their commands parse.

A push parses the commands. With --nightly those that train, evaluate, embed and compare are also executed.
"""

import ast
import importlib.util
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict, config_flags

from data_pipelines import options
from data_pipelines.batches import layout
from irm_jax.config import check, get_config, load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
TEXTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in PAGES}
SCRIPTS = {str(path.relative_to(ROOT)): path.read_text("utf-8") for path in sorted(ROOT.glob("launch/*.sh"))}
TABLES = "|".join(get_config())
FLAGS = {"config", "keys", "workdir", "mode", "topology", "num_slices"}
RUN_PAGES = ("README.md", "docs/training.md")
"""Pages whose commands of irm_jax.main the nightly test runs."""


def found(pattern: str) -> list[tuple[str, str]]:
    """Returns (file, match) for every match of a pattern in the pages, each once."""
    return sorted({(name, match) for name, text in TEXTS.items() for match in re.findall(pattern, text)})


def fences(language: str) -> list[tuple[str, str]]:
    """Returns (file, content) of the code blocks in a language."""
    return [
        (name, block)
        for name, text in TEXTS.items()
        for block in re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def lines() -> list[tuple[str, list[str]]]:
    """Returns (file, words) of the commands in the bash blocks, without comments and with joined lines."""
    joined = [(name, block.replace("\\\n", " ")) for name, block in fences("bash")]
    split = [(name, shlex.split(line, comments=True)) for name, block in joined for line in block.splitlines()]
    return [(name, words) for name, words in split if words]


def module_of(words: list[str]) -> str:
    """Returns the module of `python -m MODULE` in a command, "" if there is none."""
    return next((module for flag, module in itertools.pairwise(words) if flag == "-m"), "")


def test_paths_exist() -> None:
    top = "configs|docs|tests|launch|benchmarks|irm_jax|data_pipelines"
    named = found(rf"(?<![\w/-])(?:{top})/[\w/]*(?:\w\.(?:py|sh|txt|md)\b|(?=`))")
    named = [(name, path) for name, path in named if not path.startswith("docs/_build")]
    assert len(named) > 20
    assert [(name, path) for name, path in named if not (ROOT / path).exists()] == []


def test_links_lead_somewhere() -> None:
    """Relative links name a file, and its heading if they have an anchor; others are http addresses."""
    links = found(r"\]\(([^)\s]+)\)")
    assert links
    wrong = []
    for name, link in links:
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        if re.match(r"https?://[\w.-]+\.\w+", link):
            continue
        headings = (
            re.findall(r"^#+ (.*)$", target.read_text("utf-8"), re.MULTILINE) if anchor and target.is_file() else []
        )
        anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
        if not target.exists() or (anchor and anchor not in anchors):
            wrong.append((name, link))
    assert wrong == []


def test_the_site_has_every_page() -> None:
    tables = re.findall(r"```{toctree}\n(.*?)```", TEXTS["docs/index.md"], re.DOTALL)
    entries = [line for table in tables for line in table.splitlines() if line and not line.startswith(":")]
    listed = [re.sub(r"^.* <(?:api/)?(.*)>$", r"\1", line) for line in entries]
    pages = {path.stem for path in ROOT.glob("docs/*.md")}
    assert sorted(listed) == sorted(pages - {"index"})


def test_the_readme_fits_one_sitting() -> None:
    assert len(TEXTS["README.md"].splitlines()) <= 150
    assert (ROOT / "docs" / "query.jpg").stat().st_size <= 300_000


def test_messages_of_the_troubleshooting_page_exist() -> None:
    """What stands as code in a first column is in the source, or in a library's message, or a word of ours."""
    rows = re.findall(r"^\| (.*?) \|", TEXTS["docs/troubleshooting.md"], re.MULTILINE)
    said = {fragment for row in rows for fragment in re.findall(r"`([^`]+)`", row)}
    sources = "".join(
        path.read_text("utf-8") for top in ("irm_jax", "data_pipelines") for path in (ROOT / top).rglob("*.py")
    )
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # texts that go on in the next line
    others = ("No matching", "pip install", "'.[", "python -c", "RESOURCE_EXHAUSTED")
    assert len(said) > 40
    assert sorted(text for text in said if text not in sources and not text.startswith(others)) == []


def test_modules_can_be_run() -> None:
    modules = found(r"python -m\s+((?:irm_jax|data_pipelines|benchmarks)[\w.]+)")
    assert len(modules) > 10
    assert [(name, module) for name, module in modules if importlib.util.find_spec(module) is None] == []


def test_configuration_keys_exist() -> None:
    named = {*found(rf"`((?:{TABLES})(?:\.[a-z]\w*)+)[=`]")}
    named = {(name, key) for name, key in named if name != "docs/from_pytorch.md"}  # the keys of other projects
    named |= {*found(r"(?<![\w./])config\.(?!json\b)([a-z]\w*(?:\.\w+)*)")}  # config.json is a file
    # The run file of this page is executed by tests/extending.
    named = {(name, key) for name, key in named if name != "docs/extending.md" or key.startswith(("train.", "logs."))}
    names = {key for _, key in named if not key.endswith((".py", ".json", ".html"))}
    assert len(names) > 50
    config = get_config()
    assert [key for key in sorted(names) if not has_key(config, key)] == []


def has_key(config: ConfigDict, key: str) -> bool:
    *tables, last = key.split(".")
    for table in tables:
        if table not in config:
            return False
        config = config[table]
    return last in config


def test_bash_blocks_are_bash_and_python_blocks_are_python() -> None:
    blocks = fences("bash")
    assert len(blocks) > 10
    for name, block in blocks:
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, block, done.stderr)
    for _, block in fences("python"):
        ast.parse(block)


def test_flags_of_commands_are_known() -> None:
    """Commands of irm_jax.main are parsed with their run file; a flag of another module is in its source."""
    checked = 0
    for name, words in lines():
        module = module_of(words)
        given = [re.match(r"--?([\w.]+)", word)[1] for word in words if re.match(r"--?\w", word) and word != "-m"]
        if module == "irm_jax.main":
            assert {flag for flag in given if not flag.startswith("config.")} <= FLAGS, (name, words)
            parsed_config(words)
        elif module.startswith(("irm_jax", "data_pipelines", "benchmarks")):
            sources = source_of(module)
            own = [flag for flag in given if not flag.startswith("config.")]
            missing = [flag for flag in own if f'"--{flag}"' not in sources and f'"{flag}"' not in sources]
            assert not missing, (name, words, missing)
        checked += bool(module)
    assert checked > 20


def source_of(module: str) -> str:
    """Returns the source of a module, or of all files of a package, and of what lies beside it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    return "".join(path.read_text("utf-8") for path in Path(spec.origin).parent.glob("*.py"))


def parsed_config(words: list[str]) -> ConfigDict | None:
    """Returns the configuration that a command's `--config FILE --config.KEY=VALUE` gives, None without a run file."""
    file = next((words[i + 1] for i, word in enumerate(words) if word == "--config"), None)
    if file is None or file.isupper():
        return None
    values = flags.FlagValues()
    overrides = ["main", *(word for word in words if word.startswith("--config."))]
    base = load(str(ROOT / file) if file.startswith("configs/") else file)
    config_flags.DEFINE_config_dict("config", base, flag_values=values, sys_argv=overrides)
    values(overrides)
    return values["config"].value


def runnable() -> list[list[str]]:
    """The commands of irm_jax.main that need neither own data nor another chip; `--mode compare` last."""
    commands = [words for name, words in lines() if name in RUN_PAGES and module_of(words) == "irm_jax.main"]
    free = [words for words in commands if not {"--topology", "CONFIG", "own"} & set(words)]
    free.sort(key=lambda words: "compare" in words)
    return [words[words.index("irm_jax.main") :] for words in free]


@pytest.mark.nightly
def test_the_readme_commands_run(tmp_path: Path, micro_config: ConfigDict) -> None:
    """In their order, each in a process of its own, on the smallest data and for four steps."""
    commands = runnable()
    assert len(commands) >= 4
    (tmp_path / "FOLDER").mkdir()
    for number in range(3):
        image = np.random.default_rng(number).integers(0, 255, (64, 32, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "FOLDER" / f"{number}.png"), image)
    small = [
        f"--config.data.dir={micro_config.data.dir}", "--config.train.steps=4",
        "--config.optimizer.warmup_steps=0", "--config.evaluation.batch_size=16", "--config.data.repeat_people=True",
        *(f"--config.data.procedural.{key}={value}" for key, value in micro_config.data.procedural.items() if value),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    del environment["XLA_FLAGS"]  # one device, as a user has
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for words in commands:
        if "compare" in words:
            words = [word.replace("runs/b", "runs/a") for word in words]
        more = small if "--config" in words else []
        command = [sys.executable, "-m", *words, *more]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr[-2000:])


def commands() -> list[tuple[str, str]]:
    """Returns (file, command) of each training that is started on a pod or cluster, also in comments of the scripts."""
    found = []
    for name, text in (TEXTS | SCRIPTS).items():
        plain = re.sub(r"^#  ?", "", text, flags=re.MULTILINE) if name.startswith("launch/") else text
        for line in plain.replace("\\\n", " ").splitlines():
            if re.search(r"launch/(?:tpu_vm|gke|slurm)\.sh +configs/", line):
                found.append((name, re.sub(r" +", " ", line.split(" # ")[0].strip())))
    return found


def chips(words: dict[str, str]) -> int:
    """Returns the number of devices that a command's variables and options name."""
    if "--nodes" in words:
        each = re.search(r"#SBATCH --gpus-per-node=(\d+)", SCRIPTS["launch/slurm.sh"])
        assert each is not None
        return int(words["--nodes"]) * int(words.get("--gpus-per-node", each[1]))
    kind = words.get("ACCELERATOR", words.get("TPU_TYPE", ""))
    number = re.fullmatch(r"v5litepod-(\d+)", kind)  # other types count cores, or have a topology beside them
    assert number is not None, kind
    return int(number[1]) * int(words.get("SLICES", "1"))


def configured(command: str) -> ConfigDict:
    """Returns the configuration of a command, without the folders, which exist for its user only."""
    words = shlex.split(command)
    file = next(word for word in words if word.startswith("configs/"))
    config: ConfigDict = load(str(ROOT / file))
    for word in words:
        if word.startswith("--config.") and not word.startswith(("--config.data.vocab=", "--config.data.dir=")):
            key, value = word.removeprefix("--config.").split("=", 1)
            config.update_from_flattened_dict({key: int(value) if value.isdigit() else value})
    return config


def test_the_pod_commands_are_found() -> None:
    assert [name for name, _ in commands()] == ["docs/pods.md"] * 3 + [
        "launch/gke.sh", "launch/slurm.sh", "launch/tpu_vm.sh",
    ]  # fmt: skip


def test_pod_commands_have_a_batch_for_their_chips() -> None:
    """Blocks divide over the devices, whole people fill the rows, the rest of the configuration is valid."""
    for _, command in commands():
        words = dict(word.split("=", 1) for word in shlex.split(command) if "=" in word)
        config, devices = configured(command), chips(words)
        assert check.block_problem(config, devices) is None
        units, d = options.units_of(config), config.data
        assert layout.next_batch_size(units, d.batch_size, d.batch_blocks) == d.batch_size
        assert d.batch_blocks == devices, f"{command}: a batch of more rows than it needs"
        assert config.model.dtype == "bfloat16"
        assert "--config.data.vocab" in words, "real captions need another vocabulary than the built-in one"
        check.check(config)


def test_what_a_pod_command_lacks_is_named() -> None:
    config = configured("launch/slurm.sh configs/irm_pp.py /shared/a")
    problem = check.block_problem(config, 256)
    assert problem is not None
    assert "set --config.data.batch_blocks=256 --config.data.batch_size=9728" in problem
