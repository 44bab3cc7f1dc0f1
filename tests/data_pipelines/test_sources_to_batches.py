"""From official layouts to a training batch: one source per task, mixed, with people that they share."""

import numpy as np
import pytest
from official_trees import TREES, built

from data_pipelines.batches.layout import Unit, plan_batch
from data_pipelines.batches.make import BatchOptions
from data_pipelines.batches.prefetch import ReadAhead
from data_pipelines.batches.training_data import TrainingData
from data_pipelines.dataset.reader import Dataset
from data_pipelines.instructions.tokenizer import Tokenizer

TASKS = {
    "cuhk01": "trad", "prcc": "cc", "real1_ctcc": "ctcc", "llcm": "vi", "cuhk_pedes": "t2i", "real1_li": "li",
}  # fmt: skip
TOKENIZER = Tokenizer(max_length=24)
# One person of each set a batch, four images (t2i: one).
PLAN = plan_batch([Unit.of_task(*item) for item in TASKS.items()], 21, 1, tokenizer=TOKENIZER)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dataset]:
    root = tmp_path_factory.mktemp("mix")
    return {name: built(name, TREES[name].make(root / name), root / "out") for name in TASKS}


def training_data(datasets: dict[str, Dataset]) -> TrainingData:
    options = BatchOptions(seed=0, image_size=(32, 16), instruction_image_size=(16, 16))
    return TrainingData.of(PLAN, datasets, TOKENIZER, options)


def test_people_have_one_number_over_all_sets(datasets: dict[str, Dataset]) -> None:
    space = training_data(datasets).space
    # 485 of CUHK01, 2 of PRCC, 2 of Real1 (in ctcc and li), 1 of LLCM; CUHK-PEDES: 1 of CUHK01 and 1 of its own.
    assert (space.num_head, len(space)) == (485 + 2 + 2 + 1, 491)
    assert (space.of("real1_ctcc") == space.of("real1_li")).all()
    people = {name: datasets[name].manifest.people for name in ("cuhk01", "cuhk_pedes")}
    shared = [space.of(name)[people[name].index("cuhk01/0363")] for name in people]
    assert shared[0] == shared[1] >= 0


def test_a_batch_of_all_six_tasks(datasets: dict[str, Dataset]) -> None:
    with training_data(datasets).stream(0, 1, [0], ReadAhead(threads=0)) as stream:
        _, batch = next(iter(stream))
        found = {group: {key: np.array(value[0]) for key, value in fields.items()} for group, fields in batch.items()}
    assert {group: fields["valid"].sum() for group, fields in found.items()} == {"text": 16, "visual": 4, "caption": 1}
    infrared = found["text"]["modality"][found["text"]["task"] == 3]
    assert infrared.tolist().count(1) == 2  # half of the visible-infrared rows
    assert (found["text"]["image"].std(axis=(1, 2, 3)) > 0).all()
    assert (found["visual"]["table"].std(axis=(1, 2, 3)) > 0).all()
