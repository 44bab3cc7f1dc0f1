"""From which score on a person is taken to be in the gallery: the open-set figures of the model's evaluation.

The evaluation takes half of the people out of each gallery and finds the score that at most a share of their queries
reaches (irm_jax/evaluation/open_set.py). A threshold holds for the kind of query that it was measured with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from absl import logging

from data_pipelines.instructions.tokenizer import clean_text
from data_pipelines.tasks import TASKS
from irm_jax.evaluation import folders
from irm_jax.evaluation.earlier_results import ResultsError
from irm_jax.evaluation.figures import read_results
from irm_jax.pretrained import folder_of

FPR = "0.01"
"""The false-positive rate whose threshold is stored, as results.json writes it."""
PICTURE, UNMEASURED = "picture", "unmeasured"
"""Kinds of query beside the tasks: a picture alone, and an instruction whose ranking no evaluation has. An evaluation's
galleries are embedded under their own instructions; a constant sentence is that of all, in the second stage."""


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A score, how many queries of absent people it lets pass, and where both were measured."""

    value: float
    false_positive_rate: float
    test_set: str
    absent: int

    def describe(self) -> str:
        """One sentence."""
        return (
            f"Threshold {self.value:.3f}: above it were at most {self.false_positive_rate:.0%} of {self.absent} "
            f"queries of people who were not in the gallery ({self.test_set})."
        )


def read_thresholds(workdir: str, step: int) -> dict[str, Any]:
    """The thresholds by task of the newest evaluation of a run's step; empty without one."""
    found: dict[str, Any] = {}
    if folder_of(workdir) is not None:  # a model without the run that trained it
        return found
    try:
        results = read_results(next(iter(folders.of_step(workdir, step)), workdir))
        if (measured := results.rest["run"]["step"]) != step:
            raise ResultsError(
                f"its newest is of step {measured}: --mode evaluate --config.evaluation.checkpoint={step}"
            )
        for figure in results.open_set:
            made = Threshold(float(figure.threshold[FPR]), float(FPR), figure.test_set, figure.absent)
            found.setdefault(figure.task, dataclasses.asdict(made))  # the first test set of a task
    except (ResultsError, OSError, KeyError) as error:
        logging.warning("no thresholds: %s has no evaluation of step %s that can be read (%s)", workdir, step, error)
    return found


def constant_tasks(own: Mapping[str, str | None]) -> dict[str, str]:
    """The tasks by their constant sentences, as the model reads those. own: sentences in place of theirs, by task."""
    sentences = {task.name: own.get(task.name) or task.sentence for task in TASKS.values()}
    return {clean_text(sentence): name for name, sentence in sentences.items() if sentence}


def threshold_for(thresholds: dict[str, Any], kind: str) -> Threshold | None:
    """The threshold of a kind of query: PICTURE, UNMEASURED, or the task whose evaluation ranks as it does ("t2i" for a
    sentence); None if none was measured."""
    try:
        return Threshold(**thresholds[kind]) if kind in thresholds else None
    except TypeError:
        return None
