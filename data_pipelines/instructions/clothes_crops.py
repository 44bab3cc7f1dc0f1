"""Instruction pictures made from the data set's own pictures, where it has none (docs/method.md).

* `own`: the upper clothes of the picture itself, for task cc, as the released code feeds it.
* `outfit`: the upper clothes of another picture of the same person in the same outfit. It replaces the clothes
  templates of ctcc: it shows what is worn without the query's own pixels.

There is no body parser: the crop is a fixed box, `UPPER_CLOTHES_BOX` as fractions of the picture, and includes some
background beside a person who is off centre. On 60 pictures of Market-1501 and CUHK01 it covers shoulders to hips of
nearly everybody, with a strip of trousers under a short shirt; it misses people who are half hidden or fill only the
lower part of the picture. A nine-nearest-neighbour vote by colours inside the box, over 2,986 pictures of Market-1501's
751 training people, gives the annotated colour of the upper clothes with accuracy .66 (mean over eight colours; by the
whole picture .50) and of the lower clothes, which should be outside, with .15 (nine colours; whole picture .21). Twelve
narrower or lower boxes give .61 to .66 for the upper clothes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import cv2

from data_pipelines.errors import ImageError
from data_pipelines.images import MOST_MAX_PIXELS, decode

Kind = Literal["own", "outfit"]
UPPER_CLOTHES_BOX = (0.16, 0.52, 0.12, 0.88)
"""Top, bottom, left, right: shoulders to hips of a person who fills a detection box."""
JPEG_QUALITY = 95


def describe(kind: Kind) -> dict[str, object]:
    """Returns what a manifest says of the crops, as JSON values."""
    words = {
        "own": "the picture's own upper clothes, cut out",
        "outfit": "upper clothes of the next picture of the same person in the same outfit, cut out; the picture's own "
        "where there is no other",
    }
    box = dict(zip(("top", "bottom", "left", "right"), UPPER_CLOTHES_BOX, strict=True))
    return {"instruction_images": words[kind], "crop_box": box, "crop_jpeg_quality": JPEG_QUALITY}


def upper_clothes(picture: bytes) -> bytes:
    """Returns the upper clothes of an encoded picture as JPEG. Raises ImageError if it does not decode."""
    try:
        pixels = decode(picture, max_pixels=MOST_MAX_PIXELS)  # the writer of shards applies its own limit
    except ImageError as error:
        raise ImageError(f"the picture to cut clothes from does not decode: {error}") from error
    height, width = pixels.shape[:2]
    top, bottom, left, right = UPPER_CLOTHES_BOX
    rows = slice(int(top * height), max(int(bottom * height), int(top * height) + 1))
    columns = slice(int(left * width), max(int(right * width), int(left * width) + 1))
    crop = cv2.cvtColor(pixels[rows, columns], cv2.COLOR_RGB2BGR)
    encoded, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise ValueError("the cut-out clothes could not be compressed")
    return data.tobytes()


def same_outfit_partners(outfits: Sequence[tuple[str, int]]) -> list[int]:
    """Returns for each picture, given as (person, outfit), another one of the same pair: the next, in a circle.

    A picture that is alone with its outfit is its own partner.
    """
    groups: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for at, outfit in enumerate(outfits):
        groups[outfit].append(at)
    partner = list(range(len(outfits)))
    for members in groups.values():
        for at, following in zip(members, [*members[1:], members[0]], strict=True):
            partner[at] = following
    return partner
