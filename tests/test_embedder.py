"""The Embedder: in several threads, of how many images at a time, and of sentences that its model has not learned."""

import types
from concurrent import futures

import numpy as np
import pytest
from etils import epath

from irm_jax import Embedder, embedder

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


def test_no_images_at_a_time_are_refused():
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, not {size}"):
            Embedder("demo", batch_size=size)


@pytest.mark.nightly
def test_threads_get_what_one_gets(trained_run):
    """Other pictures, numbers of rows and instructions in each; every program and its first compilation are shared."""
    embedder, rng = Embedder(trained_run, batch_size=4), np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 64, 32, 3), np.uint8)
    template = rng.integers(0, 256, (20, 20, 3), np.uint8)
    asks = ["ignore clothes", "do not change clothes", template]
    jobs = [(pictures[n : n + 1 + n % 5], asks[n % 3]) for n in range(8)]

    def embed(job):
        given, ask = job
        return embedder.embed(given, [ask] * len(given))

    with futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(embed, jobs * 2))
    for rows, job in zip(found, jobs * 2, strict=True):
        np.testing.assert_allclose(rows, embed(job), atol=1e-6)


def test_a_model_without_captions_is_doubted(micro_config):
    opened, units = embedder.Opened(epath.Path(), 4, micro_config, None), micro_config.data.train
    assert opened.sentence_doubt is None
    with micro_config.unlocked():
        for name in ("procedural_t2i", "procedural_cc", "procedural_ctcc", "procedural_vi"):
            del units[name]
    # Of li alone the encoder of sentences learns, and no projection.
    assert "was trained on li, trad, and on no captions. Train with a data set of the task t2i" in opened.sentence_doubt
    micro_config.init.image_encoder = "weights/vit"
    assert opened.sentence_doubt
    for given in ({"text_encoder": "weights/vit"}, {"text_encoder": "", "model": "weights/irm"}):
        micro_config.init.update(given)
        assert opened.sentence_doubt is None
    micro_config.init.model = ""
    micro_config.data.train = type(units)()
    assert opened.sentence_doubt is None


def test_a_doubted_sentence_is_warned_of_once(micro_config, monkeypatch, caplog):
    with micro_config.unlocked():
        del micro_config.data.train["procedural_t2i"]
    config = types.SimpleNamespace(projection_width=8)
    model = types.SimpleNamespace(
        model=types.SimpleNamespace(config=config),
        project_sentences=lambda given: np.ones((len(given), 8)),
        batch_size=4,
    )
    opened = embedder.Opened(epath.Path(), 4, micro_config, model)
    monkeypatch.setattr(embedder, "open_checkpoint", lambda *_: opened)
    for first in (lambda one: one.embed_text(["red"]), lambda one: one.project_images([])):
        caplog.clear()
        found = Embedder("run")
        assert not caplog.text
        first(found)
        found.embed_text("red")
        assert caplog.text.count("A sentence alone means nothing to this model") == 1
