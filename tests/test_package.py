"""The package as users get it: cheap to import, with the embedder behind it; what the built wheel holds."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import irm_jax
from irm_jax import embedder
from irm_jax.config import run_files

ROOT = Path(__file__).parents[1]
HEAVY = ("jax", "torch", "tensorboardX", "tensorflow", "transformers", "grain", "orbax")


def test_embedder_is_offered_by_the_package() -> None:
    assert irm_jax.Embedder is embedder.Embedder


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Embeder'"):
        irm_jax.Embeder  # noqa: B018


def loaded(statement: str) -> list[str]:
    """Which heavy libraries a new process has loaded after the statement."""
    code = f"import json, sys; {statement}; print(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_command_line_loads_nothing_heavy() -> None:
    """A wrong flag or key is answered at once."""
    assert loaded("import irm_jax.main") == []


def test_the_checks_of_a_configuration_load_no_jax() -> None:
    assert "jax" not in loaded("import irm_jax.config.check")


def test_the_embedder_loads_no_torch() -> None:
    """Where torch is installed, tensorboardX would load it: 2.5 seconds."""
    assert not {"torch", "tensorboardX", "tensorflow"} & set(loaded("from irm_jax import Embedder"))


@pytest.mark.nightly
def test_a_built_wheel_needs_no_checkout(tmp_path: Path) -> None:
    """Builds the wheel from a copy, unpacks it, and loads its run files from an empty folder."""
    copy, wheels, site, empty = (tmp_path / name for name in ("copy", "wheels", "site", "empty"))
    empty.mkdir()
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(wheels), str(copy)]
    subprocess.run(build, check=True, timeout=600)
    (wheel,) = wheels.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    top = {name.split("/")[0] for name in names}
    assert {name for name in top if not name.endswith(".dist-info")} == {"irm_jax", "data_pipelines"}
    for folder in ("irm_jax", "data_pipelines"):
        sources = {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.py")}
        assert sources <= names
    run = {f"irm_jax/run_files/{path.name}" for path in (ROOT / "configs").glob("*.py")}
    assert run <= names
    assert {
        "data_pipelines/instructions/vocab/procedural.txt",
        "irm_jax/evaluation/report/templates/report.html.j2",
    } <= names
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "irm_jax = irm_jax.main:command" in entry_points.read_text("utf-8")
    code = (
        "from irm_jax.config import check, load, run_files; import irm_jax; print(irm_jax.__file__)\n"
        f"assert list(run_files.shipped()) == {list(run_files.shipped())}\n"
        "for name in run_files.shipped():\n"
        "    config = load(name)\n"
        "    config.data.vocab, config.init.image_encoder, config.init.text_encoder = 'builtin', '', ''\n"
        "    check.check(config)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
