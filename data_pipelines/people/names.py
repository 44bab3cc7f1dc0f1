"""Names of people over all data sets, `namespace/pid`, and the person and camera that a file name states.

CUHK-PEDES is made of pictures of other data sets and keeps their file names, so its people are named as there: else
they would be false negatives, in training and in the union of galleries. Forms of names, verified against the published
captions of its test and validation images:

    Market/0535_c1s3_005146_00.jpg    Market-1501, person 0535, camera 1 (pictures of gt_bbox/)
    CUHK01/0363004.png                CUHK01, person 0363, picture 004, so camera b
    CUHK03/672_2.jpg                  CUHK03, person 672 of 1,467, counted over the five camera pairs: the captions of
                                      12 people of the first pair fit its pictures; beyond that pair it is assumed

`cam_a/`, `cam_b/` (VIPeR), `test_query/` and `train_query/` (CUHK-SYSU) come from sets that are not built here.
"""

from __future__ import annotations

import re
import unicodedata

ORIGINS: dict[str, tuple[re.Pattern[str], str]] = {
    "Market/": (re.compile(r"(\d{4})_c\d+"), "market1501"),
    "CUHK01/": (re.compile(r"(\d{4})\d{3}\."), "cuhk01"),
    "CUHK03/": (re.compile(r"(\d+)_\d+\."), "cuhk03"),
    "Trad/": (re.compile(r"(p\d+)_c\d"), "procedural_trad"),
}
"""First folder of a file name -> (pattern of the person in the rest of the name, namespace of that person)."""
CUHK01_PICTURES = 4
"""Pictures per person: 1 and 2 are of camera a, 3 and 4 of camera b."""
DISTRACTORS = "market1501/0000"
"""The name under which Market-1501 files everybody who is nobody: its pictures show as many people as there are."""
JUNK = -1
"""The number that Market-1501, and lists made after it, give to boxes that show no person; they are left out."""
_MARKET_CAMERA = re.compile(r"\d{4}_c([1-6])(?!\d)")
_NUMBER = re.compile(r"[0-9]{1,18}")
_CUHK01_PICTURE = re.compile(rf"\d{{4}}00([1-{CUHK01_PICTURES}])\.")


def person_name(namespace: str, pid: int | str) -> str:
    """Returns the global name of a person: numbers have at least four digits, as in the file names of most sets.

    Text that is a whole number counts as that number, because programs that read and write tables drop its zeros.
    Accents count however they are coded: macOS takes the letter and its accent of a folder's name apart (NFD).
    """
    number = int(pid) if isinstance(pid, str) and _NUMBER.fullmatch(pid) else pid
    if isinstance(number, int):
        return f"{namespace}/{number:04d}"
    return unicodedata.normalize("NFC", f"{namespace}/{number}")


def same_name(name: str) -> str:
    """Returns the name by which a person is compared: `market1501/50`, as older builds wrote it, is `.../0050`."""
    namespace, slash, pid = name.partition("/")
    return person_name(namespace, pid) if slash else unicodedata.normalize("NFC", name)


def known_person(file: str) -> str | None:
    """Returns the person name that a file name states by its origin, None if it states none."""
    for folder, (pattern, namespace) in ORIGINS.items():
        if file.startswith(folder):
            match = pattern.match(file, len(folder))
            if match is None:
                return None
            return person_name(namespace, int(match[1]) if match[1].isdigit() else match[1])
    return None


def known_camera(file: str) -> int | None:
    """Returns the camera that a file name states, from 0 as the set of its origin numbers them; None if it does not."""
    if file.startswith("Market/"):
        match = _MARKET_CAMERA.match(file, len("Market/"))
        return int(match[1]) - 1 if match else None
    if file.startswith("CUHK01/"):
        match = _CUHK01_PICTURE.match(file, len("CUHK01/"))
        return cuhk01_camera(int(match[1])) if match else None
    return None


def cuhk01_camera(picture: int) -> int:
    """Returns the camera (0: a, 1: b) of a person's picture 1 to 4 in CUHK01."""
    return int(picture > CUHK01_PICTURES // 2)
