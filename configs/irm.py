"""IRM at paper scale: the `base` model, trained jointly on the data sets that the released joint recipe names.

Build the shards first (`python -m data_pipelines.build`), and give the vocabulary of the pretrained BERT
(docs/pretrained.md; the built-in one lacks the captions' words, and is refused):
--config.data.dir=... --config.data.vocab=FOLDER. A step has 32 x 4 rows of each of nine data sets, 24 captions of
CUHK-PEDES and six times as many of SYNTH-PEDES, as in the released recipe, whose optimizer is the library's default.

CUHK-PEDES trains on test people of Market-1501 and CUHK03: build it last, with --leave_out market1501 cuhk03_labeled,
or train on them as the released recipe does, with --config.data.leaks=warn.

Rows are split over at most eight devices. More need more blocks and a larger batch (docs/pods.md).
"""

from __future__ import annotations

from ml_collections import ConfigDict

from irm_jax.config import data_sets, keys

EDITED = ("market1501", "msmt17", "cuhk03_labeled", "prcc", "ltcc", "vcclothes", "real1_ctcc", "real1_li", "llcm")
CAPTIONS = {"cuhk_pedes": 1, "synth_pedes": 6}
"""Data set -> units of 24 captions per batch."""
TEST = (
    "market1501", "msmt17", "cuhk03_labeled", "prcc", "ltcc", "vcclothes", "real2_ctcc", "real2_li", "llcm",
    "cuhk_pedes",
)  # fmt: skip


def get_config() -> ConfigDict:
    config = keys.get_config()
    config.data.build_missing = False
    data_sets.train_on(config, (*EDITED, *CAPTIONS))
    data_sets.test_on(config, TEST)
    units = config.data.train
    for name in EDITED:
        units[name].share = 32.0 * 4
    for name, count in CAPTIONS.items():
        units[name].share = units[name].loss_weight = float(count)
        units[name].share *= 24
    # CUHK-PEDES has people of CUHK03; those that no file name links must not count as other people.
    config.evaluation.overlaps = ("cuhk_pedes:cuhk03_labeled",)
    config.data.batch_size = int(sum(unit.share for unit in units.values()))
    config.data.batch_blocks = 8
    config.data.repeat_people = True  # a pod's batch has more places than LTCC has people
    config.data.workers = 8
    config.model.preset = "base"
    config.model.scan_layers = True
    config.model.remat = "full"  # recomputing activations is faster than keeping them (docs/scaling.md)
    return config
