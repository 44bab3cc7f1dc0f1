"""The six ReID tasks of Instruct-ReID++. The only file that knows their names; other code reads the fields of a row."""

from __future__ import annotations

import dataclasses

NEUTRAL_SENTENCE = "any image of this person"
"""[ours] The instruction that asks for nothing: the gallery side of the task-free setting, and instruction dropout."""


@dataclasses.dataclass(frozen=True)
class TaskSpec:
    """One task as the trainer and the evaluator see it.

    `group` is the kind of instruction its rows carry: `text` (a sentence), `visual` (an image) or `caption` (the
    sentence is the query; there is no query image). `sentence` is the constant instruction, None where every record
    brings its own. `outfits` asks the sampler for that many outfits of each person in a batch (0: any),
    `balance_modality` for as many infrared as visible images; `composed` adds rows under the instruction of another
    owned outfit [ours].
    """

    id: int
    name: str
    title: str
    group: str
    sentence: str | None = None
    outfits: int = 0
    balance_modality: bool = False
    composed: bool = False

    @property
    def has_query_image(self) -> bool:
        return self.group != "caption"


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
GROUPS = ("text", "visual", "caption")


def task(name: str) -> TaskSpec:
    """Returns the row of a task. Raises ValueError naming the known tasks."""
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; the tasks are {', '.join(TASKS)}")
    return TASKS[name]
