"""Batches planned without data: the counts that data sets state; the plan and numbering that training would have."""

import numpy as np
import pytest

from data_pipelines.batches import stated_data, training_data
from data_pipelines.errors import DatasetError
from irm_jax.config import load


def test_paper_scale_has_the_published_people():
    config = load("irm_pp")
    data = stated_data.plan_training(config, max_length=70)
    counts = dict(zip(data.plan.datasets, data.space.members.sum(axis=1).tolist(), strict=True))
    assert counts == {
        "market1501": 751, "msmt17": 1041, "cuhk03_labeled": 767, "prcc": 150, "ltcc": 77, "vcclothes": 256,
        "real1_ctcc": 2800, "real1_li": 2800, "llcm": 713, "cuhk_pedes": 0, "synth_pedes": 0,
    }  # fmt: skip
    assert data.space.num_head == sum(counts.values()) - 2800  # one set of people in two data sets
    assert len(data.space) == data.space.num_head + 11_003 + 312_321
    assert data.plan.batch_size == 9 * 128 + 24 + 144


def test_it_plans_what_training_opens(micro_config):
    """The procedural sets, once from their shards and once from what the configuration says of them."""
    opened = training_data.open_training(
        micro_config, image_size=(64, 32), instruction_image_size=(32, 32), max_length=40
    )
    micro_config.data.dir = "nowhere"
    stated = stated_data.plan_training(micro_config, max_length=40)
    assert stated.plan.fingerprint() == opened.plan.fingerprint()
    np.testing.assert_array_equal(stated.space.members, opened.space.members)


def test_too_few_people_and_unknown_data_sets_are_errors_with_the_cure():
    config = load("irm")
    config.data.repeat_people = False
    config.data.batch_blocks, config.data.batch_size = 128, 128 * 38
    with pytest.raises(DatasetError, match=r"'ltcc' has 77 training identities, but a batch takes 128 .*repeat_people"):
        stated_data.plan_training(config, max_length=70)
    config.data.train.ltcc.data_set = "my_own"
    with pytest.raises(DatasetError, match=r"nothing is known of the training people of data set my_own: build it"):
        stated_data.plan_training(config, max_length=70)
