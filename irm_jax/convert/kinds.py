"""The kinds of weight files: how each is read, and the names that a file of it has for our arrays."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from irm_jax.convert import albef, bert, image, irm_release
from irm_jax.convert.conversion import Conversion, Options
from irm_jax.convert.source import Source
from irm_jax.models.encoders import vit
from irm_jax.models.weight_files import Rule

Names = tuple[tuple[str, str, Sequence[Rule]], ...]
"""How arrays are named in a file: (what a path begins with, what a name begins with, rules for the rest)."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One value of `--kind`.

    `names`: of the towers that a conversion of the kind fills. `fusion`: of the fusion layers and heads beside them,
    by the number of text layers, for a model that has fusion layers. `container`: the dictionary of a PyTorch file that
    holds the state dict ("state_dict."). `positions`: how many its text encoder has, if the code that reads it wants
    a fixed number. `sentence_sep`: whether its sentences end with [SEP].
    """

    help: str
    read: Callable[[Source, Options], Conversion]
    names: Names
    fusion: Callable[[int], Names] = lambda text_depth: ()
    container: str = ""
    positions: int = 0
    sentence_sep: bool = True


_ALBEF: Names = (
    ("text_encoder/", f"{albef.TEXT}bert.", bert.RULES),
    ("image_encoder/", albef.IMAGE, vit.TIMM),
    ("", "", albef.PROJECTIONS),
)
_IRM_RELEASE: Names = (
    ("image_encoder/", irm_release.IMAGE, vit.PASS),
    ("template_encoder/", irm_release.TEMPLATE, vit.TIMM),
    ("text_encoder/", f"{albef.TEXT}bert.", bert.RULES),
    ("editing_transformer/", "", irm_release.EDITING),
    ("", "", irm_release.REST),
)


_BERT_POSITIONS = 512
"""Of bert-base-uncased, whose configuration ALBEF and the released IRM build their text encoder with."""


def _fusion_names(heads: Sequence[str], text_depth: int) -> Names:
    return (
        ("fusion_encoder/", f"{albef.TEXT}bert.", bert.fusion_rules(text_depth)),
        *((f"{name}/", "", albef.head_rules(name)) for name in heads),
        ("word_head/", albef.TEXT, bert.WORD_HEAD),
        ("", albef.TEXT, (bert.TIED,)),
    )


def kinds() -> dict[str, Kind]:
    """Every kind by its name: the text encoder, the families of the registered image encoders, and whole models."""
    of_encoders = {
        name: Kind(
            family.help, functools.partial(image.read, name),
            (("image_encoder/", "", next(iter(family.namings.values()))),),
        )
        for name, (_, family) in image.families().items()
    }  # fmt: skip
    return {
        "bert": Kind(
            "a BERT of any width and depth (Hugging Face; its config.json says the heads), and its word head",
            bert.read, (("text_encoder/", "", bert.RULES),),
        ),
        **of_encoders,
        "albef": Kind(
            "ALBEF: its text encoder, its fusion layers, its heads, and its image encoder",
            albef.read, _ALBEF, lambda depth: _fusion_names(("matching_head",), depth), "model.", _BERT_POSITIONS,
            sentence_sep=False,
        ),
        irm_release.NAME: Kind(
            "a released Instruct-ReID checkpoint (.pth.tar), the whole model",
            irm_release.read, _IRM_RELEASE, lambda depth: _fusion_names(tuple(albef.HEADS), depth), "state_dict.",
            _BERT_POSITIONS, sentence_sep=False,
        ),
    }  # fmt: skip


def convert(kind: str, source: Source, options: Options) -> Conversion:
    """Converts the tensors of `source` as a file of `kind`. Raises ConvertError."""
    conversion = kinds()[kind].read(source, options)
    conversion.notes[:0] = source.notes
    return conversion
