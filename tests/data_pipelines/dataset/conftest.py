import shutil
from pathlib import Path

import pytest
import toy_shards


@pytest.fixture(scope="package")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the toy data set; tests read it."""
    out = tmp_path_factory.mktemp("built")
    toy_shards.build(out)
    return out


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """Copies the data folder, to be damaged; returns the version folder."""
    shutil.copytree(built, tmp_path / "data")
    return tmp_path / "data" / "toy" / "1.0.0"
