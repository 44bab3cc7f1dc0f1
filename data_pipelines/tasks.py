"""The six ReID tasks of Instruct-ReID++. The only file that knows their names; other code reads the fields of a row."""

from __future__ import annotations

import dataclasses

NEUTRAL_SENTENCE = "any image of this person"
"""The instruction that asks for nothing: the gallery side of the task-free setting, and instruction dropout."""
KINDS = ("text", "visual", "caption")
"""Kinds of instruction: a sentence, an image, or a sentence that is the query itself (there is no query image)."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task as the trainer and the evaluator see it.

    Attributes:
      id: its number in batches and metrics.
      name, title: its short and its full name.
      kind: the kind of instruction of its rows, one of KINDS.
      sentence: the constant instruction, None where every record has its own.
      outfits: how many outfits of each person the sampler draws into a batch (0: any).
      balance_modality: whether the sampler draws as many infrared as visible images of a person.
      composed: whether batches have composed rows, a row's image under the instruction of another outfit of the person.
    """

    id: int
    name: str
    title: str
    kind: str
    sentence: str | None = None
    outfits: int = 0
    balance_modality: bool = False
    composed: bool = False

    @property
    def has_query_image(self) -> bool:
        """Whether a query is an image (with an instruction), not a caption."""
        return self.kind != "caption"


TASKS: dict[str, TaskSpec] = {
    spec.name: spec
    for spec in (
        TaskSpec(0, "trad", "traditional", "text", sentence="do not change clothes"),
        TaskSpec(1, "cc", "clothes-changing", "text", sentence="ignore clothes", outfits=2),
        TaskSpec(2, "ctcc", "clothes-template clothes-changing", "visual", outfits=2, composed=True),
        TaskSpec(3, "vi", "visible-infrared", "text", sentence="cross modality", balance_modality=True),
        TaskSpec(4, "t2i", "text-to-image", "caption"),
        TaskSpec(5, "li", "language-instructed", "text", outfits=2, composed=True),
    )
}
TASK_NAMES = tuple(TASKS)


def task(name: str) -> TaskSpec:
    """Returns the row of a task. Raises ValueError naming the known tasks."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
