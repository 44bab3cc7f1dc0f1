"""Converted folders and fresh states for the tests of warm starts."""

import pytest
import weights
from started import ones

from irm_jax.convert import folder
from irm_jax.convert.conversion import Options
from irm_jax.convert.kinds import convert
from irm_jax.convert.source import Source
from irm_jax.models.config import IRMConfig
from irm_jax.training.state import TrainState


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A conversion of every kind, and of a BERT with its head of hidden words."""
    found = {}
    for kind, shapes in (
        ("bert", weights.bert()), ("vit", weights.vit()), ("pass", weights.pass_vit()), ("albef", weights.albef()),
        ("masked_bert", weights.bert("bert.") | weights.word_head()), ("irm_release", weights.irm_release()),
    ):  # fmt: skip
        place = tmp_path_factory.mktemp(kind)
        weights.write(shapes, place / "w.safetensors")
        if kind == "irm_release":
            words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmno"]
            (place / "vocab.txt").write_text("\n".join(words) + "\n")
        source = Source(place / "w.safetensors")
        found[kind] = str(
            folder.save(convert(kind.removeprefix("masked_"), source, Options(heads=2)), source, place / "out")
        )
    return found


@pytest.fixture(scope="session")
def fresh() -> tuple[IRMConfig, TrainState]:
    """`ones` without layers that read images."""
    return ones()


@pytest.fixture(scope="session")
def fresh_fusion() -> tuple[IRMConfig, TrainState]:
    """`ones` with as many text layers as ALBEF's file has, and one that reads images."""
    return ones(text_depth=2, fusion_depth=1)
