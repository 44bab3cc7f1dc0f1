"""A checkpoint of commit 77f4167, which has no resolved model configuration: it is read, embeds, and is resumed.

tests/fixtures/README.md says how it was made.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import jax
import numpy as np

from irm_jax import Embedder, checkpoint, run
from irm_jax.checkpoint import Checkpointer
from irm_jax.config import keys
from irm_jax.models import presets
from irm_jax.parallel import mesh as mesh_lib

SENTENCES = ["do not change clothes", "with the same clothes as this person"]
EMBEDDINGS = np.array([
    [0.289787233, 0.419465333, -0.464519322, 0.188156724, -0.051811334, -0.271789730, -0.170430556, -0.396143109,
     0.214109331, 0.073696405, -0.272555023, 0.043041915, -0.072944455, -0.137700707, -0.008435067, 0.273120224],
    [0.406638503, 0.382933199, -0.374029785, 0.289750636, -0.211657524, -0.131980330, -0.246183291, -0.457831830,
     -0.097606748, -0.010352723, -0.233425528, -0.052548487, -0.032738905, 0.020717273, 0.090360105, 0.234884143],
])  # fmt: skip
"""f32[2, 16] of two noise images under the sentences, as that commit embeds them."""


def test_it_says_of_what_model_it_is(earlier_run: Path) -> None:
    directory = earlier_run / "checkpoints"
    step, metadata = checkpoint.read_metadata(directory)
    assert step == 8
    assert "model" not in metadata
    found = checkpoint.saved_model(metadata, checkpoint.array_shapes(directory))
    assert found == presets.preset(
        "tiny", width=8, image_size=(64, 32), image_depth=1, image_heads=2, text_depth=1, text_heads=2,
        template_depth=1, template_heads=2, projection_width=4, editing_depth=2, mlp_ratio=2.0, fusion_depth=1,
        vocab_size=512, num_identities=96,
    )  # fmt: skip


def test_it_embeds_as_it_did(earlier_run: Path) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8))
    np.testing.assert_allclose(Embedder(earlier_run)(images, SENTENCES), EMBEDDINGS, rtol=0, atol=1e-6)


def test_it_is_resumed(earlier_run: Path, procedural_dir: Path, tmp_path: Path) -> None:
    """Its whole state fits today's, and its data plan is that of today's data."""
    directory = tmp_path / "checkpoints"
    shutil.copytree(earlier_run / "checkpoints", directory)
    _, metadata = checkpoint.read_metadata(directory)
    config = keys.completed(metadata["config"])
    config.data.dir = str(procedural_dir)
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    resumed = run.build(config, mesh=mesh)
    resumed.check_checkpoint(checkpoint.saved_model(metadata, checkpoint.array_shapes(directory)))
    checkpoint.check_fingerprint(metadata["fingerprint"], resumed.data.fingerprint())
    with Checkpointer(directory) as checkpointer:
        state, _ = checkpointer.restore(resumed.abstract_state())
    assert int(state.step) == 8
    assert int(state.memory_bank.pushes) == 8
