"""The model of a run as search takes it; what search does with vectors is tested with a stand-in (test_index.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from search_pictures import picture

from data_pipelines.tasks import NEUTRAL_SENTENCE
from irm_jax.search.model import SearchModel


@pytest.mark.usefixtures("quick_programs")
def test_vectors_are_those_of_the_embedder(run_dir: str) -> None:
    model = SearchModel(run_dir)
    assert (model.workdir, model.step, model.judges) == (str(Path(run_dir).resolve()), 4, True)
    assert SearchModel(run_dir, step=2).fingerprint != model.fingerprint == SearchModel(run_dir, step=4).fingerprint
    assert model.constant_tasks["ignore clothes"] == "cc"
    pictures = [picture(1)]
    neutral, caption = model.embed_pictures(pictures)
    assert {"neutral": neutral.shape[1], "caption": caption.shape[1]} == model.widths
    embed = model._model.embed
    np.testing.assert_allclose(neutral, embed(pictures.__getitem__, [NEUTRAL_SENTENCE]), atol=1e-6)
    words = "wearing a red shirt"
    np.testing.assert_allclose(model.embed_under(pictures, words), embed(pictures.__getitem__, [words]), atol=1e-6)
    for vector in (caption[0], model.embed_sentence("a red shirt")):
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    assert model.unknown_words("a zzyzx red shirt")[1] == ("zzyzx",)
    assert np.isfinite(model.match("a red shirt", pictures)).all()
