"""Helpers of the sources: descriptors of pictures; folders and lists read with errors that name the place."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.dataset import schema
from data_pipelines.errors import DatasetError, ImageError
from data_pipelines.images import read_file
from data_pipelines.instructions import clothes_crops


class Picture(NamedTuple):
    """A descriptor of one record (see `writer.DatasetSpec`): all fields but the pixels.

    Attributes:
      file: relative to the raw folder.
      size: of the file in bytes, by which a resumed build notices a replaced picture.
      template, template_size: file of the instruction image, and its size.
      crop: whether only the upper clothes of the template are taken.
      person, camera, ...: as in schema.Record.
    """

    file: str
    person: str
    camera: int
    size: int
    clothes: int = schema.UNKNOWN
    modality: int = schema.VISIBLE
    sentences: tuple[str, ...] = ()
    attributes: tuple[int, ...] = ()
    instruction_attributes: tuple[int, ...] = ()
    instruction_clothes: int = schema.UNKNOWN
    template: str = ""
    template_size: int = 0
    crop: bool = False


def load(raw: Path, item: Any) -> schema.Record:
    """Returns the Record of a Picture; its bytes go in as they are."""
    return record(item, read(raw / item.file), read(raw / item.template) if item.template else b"")


def read(path: Path) -> bytes:
    """Returns the bytes of a picture.

    Raises DatasetError if it can no longer be read, ImageError if it is no regular file.
    """
    try:
        return read_file(path)
    except OSError as error:
        raise DatasetError(
            f"{path} was there when the folder was listed, and cannot be read now ({error.strerror}): put it back, and "
            f"run the same build again; finished shards are kept"
        ) from error


def record(item: Picture, image: bytes, template: bytes = b"") -> schema.Record:
    """Returns the Record of a Picture, given the bytes of the picture and of its instruction image."""
    if item.crop:
        with contextlib.suppress(ImageError):  # the writer names a damaged picture, or leaves the record out
            template = clothes_crops.upper_clothes(template)
    return schema.Record(
        image=image,
        file=item.file,
        person=item.person,
        camera=item.camera,
        clothes=item.clothes,
        modality=item.modality,
        attributes=item.attributes,
        sentences=item.sentences,
        instruction_images=(template,) if item.template else (),
        instruction_clothes=item.instruction_clothes,
        instruction_attributes=item.instruction_attributes,
    )


def number(text: str) -> int | None:
    """Returns the whole number that ASCII digits state, at most 18 of them; None for any other text.

    `int` and `str.isdigit` take other digits, as ², for which they disagree, and `int` refuses 5,000 of them.
    """
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None


def is_utf8(text: str) -> bool:
    """Tells whether text can be stored. A file name in another encoding, or half an escape, has surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_text(text: str, path: Path) -> None:
    """Raises DatasetError for text of a file that was cut and filled with zeros, or is in UTF-16 or UTF-32."""
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DatasetError(
            f"{path}, line {line}: it holds bytes of zero: the file is damaged, or no text in UTF-8: get it again, or "
            f"save it as such"
        )


def check_sentences(sentences: Sequence[Any], where: str) -> None:
    """Raises DatasetError unless all are text that can be stored; `where` is their place."""
    for text in sentences:
        if not isinstance(text, str):
            raise DatasetError(f"{where}: {text!r} must be a sentence: correct it, or get the list again")
        if not is_utf8(text):
            raise DatasetError(
                f"{where}: {text!r} holds half a character, which cannot be stored: correct the text, or get the list "
                f"again"
            )


def says_something(sentence: str) -> bool:
    """Tells whether a sentence has a word: `""` and `"..."` have none, and the model would read nothing."""
    return any(character.isalnum() for character in sentence)


def _storable(names: list[str], folder: Path) -> list[str]:
    """Returns the names. Raises DatasetError for one that is not UTF-8."""
    for name in names:
        if not is_utf8(name):
            raise DatasetError(f"{folder}: the name {os.fsencode(name)!r} is not UTF-8: rename it")
    return names


def check_tree(raw: Path, title: str, needed: Sequence[str]) -> None:
    """Raises DatasetError unless `raw` holds all of `needed`; a name that ends with / is a folder, else a file."""

    def holds(folder: Path, name: str) -> bool:
        return (folder / name).is_dir() if name.endswith("/") else (folder / name).is_file()

    if not raw.is_dir():
        raise DatasetError(f"the raw folder {raw} does not exist: unpack {title} there, or correct the path")
    missing = [name for name in needed if not holds(raw, name)]
    if not missing:
        return
    if not any(raw.iterdir()):
        raise DatasetError(f"the raw folder {raw} is empty: unpack {title} there, or correct the path")
    message = f"{raw} lacks {', '.join(missing)}"
    if inside := [path for path in sorted(raw.iterdir()) if holds(path, needed[0])]:
        raise DatasetError(f"{message}, but {inside[0]} looks like {title}: give that folder")
    raise DatasetError(f"{message}: give the folder that holds {', '.join(needed)}")


def files(raw: Path, folder: str, title: str, suffixes: tuple[str, ...] = (".jpg",)) -> list[tuple[str, int]]:
    """Returns (file relative to `raw`, size in bytes) of the folder's pictures by name; an error if it has none."""
    names = [name for name in os.listdir(raw / folder) if name.lower().endswith(suffixes)]
    if not names:
        what = " or ".join(suffixes)
        raise DatasetError(f"{raw / folder} holds no {what} file: the copy of {title} is incomplete, get it again")
    prefix = folder.rstrip("/")
    listed = [f"{prefix}/{name}" for name in sorted(_storable(names, raw / folder))]
    return [(file, listed_size(raw, file, f"the folder {raw / folder}")) for file in listed]


def folders(raw: Path, folder: str, title: str) -> list[str]:
    """Returns the names of the folders inside a folder, sorted; an error if there are none."""
    with os.scandir(raw / folder) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir())
    if not found:
        raise DatasetError(f"{raw / folder} holds no folder: the copy of {title} is incomplete, get it again")
    return _storable(found, raw / folder)


def parsed(pattern: re.Pattern[str], file: str, title: str, form: str) -> re.Match[str]:
    """Matches the last part of a file's path. `form` describes what it should begin with."""
    match = pattern.match(file.rsplit("/", 1)[-1])
    # \d takes digits of every script, and any number of them.
    if match is None or any(part and part.isdigit() and number(part) is None for part in match.groups()):
        raise DatasetError(
            f"{file}: the name does not begin with {form}: remove the file if it is no picture of {title}, else get "
            f"the data set again"
        )
    return match


def camera_index(number: int, cameras: int, file: str, title: str) -> int:
    """Returns a camera's number from 0. Raises DatasetError unless it is one of 1..`cameras`."""
    if not 1 <= number <= cameras:
        raise DatasetError(
            f"{file}: camera {number}, but {title} has cameras 1 to {cameras}: remove or rename the file"
        )
    return number - 1


def outfit_number(number: int, file: str, title: str) -> int:
    """Returns the number of an outfit. Raises DatasetError for one that cannot be stored."""
    if number > schema.MAX_CLOTHES:
        raise DatasetError(
            f"{file}: outfit {number}, but numbers go to {schema.MAX_CLOTHES}: remove or rename the file if it is no "
            f"picture of {title}"
        )
    return number


def unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object, for `json.loads(object_pairs_hook=...)`, which takes the last of several equal keys.

    Raises ValueError naming a key that stands there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands there twice in one object")
    return found


def lines(path: Path) -> list[tuple[str, str]]:
    """Returns ("file, line n", text) of every line of a text file that is not blank."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist: get the list again, or correct the path") from error
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}): give a text file that may be read") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not text in UTF-8 ({error}): save it as such") from error
    check_text(text, path)
    # Not splitlines: it ends a line at U+2028 and the like, which a file's name may hold.
    listed = enumerate(text.split("\n"), 1)
    return [(f"{path}, line {number}", line.removesuffix("\r")) for number, line in listed if line.strip()]


def path_and_label(path: Path) -> list[tuple[str, str, int]]:
    """Returns ("file, line n", relative path, label) of a list of lines `relpath label`."""
    rows = []
    for where, line in lines(path):
        match = re.fullmatch(r"\s*(\S.*?)\s+(\S+)\s*", line)
        label = number(match[2]) if match else None
        if match is None or label is None:
            raise DatasetError(
                f"{where}: {line.strip()!r} is not `path label`: is this the official list? Get it again"
            )
        rows.append((where, match[1], label))
    if not rows:
        raise DatasetError(f"{path} is empty: get the official list again")
    return rows


def comma_numbers(path: Path) -> list[int]:
    """Returns the numbers of a list that is one comma-separated line, in order."""
    numbers: list[int] = []
    for where, line in lines(path):
        for column, cell in enumerate(line.split(","), 1):
            if not cell.strip():
                continue
            found = number(cell.strip())
            if found is None:
                raise DatasetError(f"{where}, entry {column}: {cell.strip()!r} is no number: get the list again")
            numbers.append(found)
    if not numbers:
        raise DatasetError(f"{path} is empty: get the official list again")
    return numbers


def as_listed(raw: Path, file: str) -> str:
    """Returns the path of a picture that a list names; one that Windows wrote, with \\ between folders, in our form."""
    return file.replace("\\", "/") if "\\" in file and not os.path.lexists(raw / file) else file


def is_there(raw: Path, file: str) -> bool:
    """Tells whether a list names a file. Unlike `Path.is_file`, it raises nothing for names that are too long."""
    return os.path.isfile(raw / as_listed(raw, file))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _near(path: Path) -> str:
    """Returns the words that name a file of the same folder whose name differs in case, or in how accents are coded."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(path.parent)):
            if _plain(name) == _plain(path.name) and name != path.name:
                return f" ({name} is: write it as on the disk)"
    return ""


def listed_size(raw: Path, file: str, where: str) -> int:
    """Returns the size of a picture that a list names.

    Raises DatasetError naming the list's line if it is missing, or its name not UTF-8.
    """
    if not is_utf8(file):
        raise DatasetError(f"{where}: the picture's name {file!r} is not UTF-8: rename the file, here and on the disk")
    try:
        found = os.stat(raw / file)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise DatasetError(
            f"{where}: the picture {raw / file} is not there{_near(raw / file)}: the copy is incomplete, or the folder "
            f"is not the one the list belongs to"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise DatasetError(f"{where}: {raw / file} is no file but a folder or a device: remove it, or correct the list")
    return found.st_size
