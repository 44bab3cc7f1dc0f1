"""Copies in another quality or size are found, other pictures of the same scene are not."""

from pathlib import Path

import cv2
import numpy as np

from data_pipelines.people import near_duplicates


def test_copies_are_found_and_other_pictures_are_not(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = [cv2.resize(rng.integers(0, 255, (8, 4, 3)).astype(np.uint8), (64, 128)) for _ in range(20)]
    files = []
    for number, picture in enumerate(smooth):
        files.append(tmp_path / f"{number}.png")
        cv2.imwrite(str(files[-1]), picture)
    for name, picture, options in (
        ("quality.jpg", smooth[3], [cv2.IMWRITE_JPEG_QUALITY, 40]),
        ("size.png", cv2.resize(smooth[5], (48, 96), interpolation=cv2.INTER_AREA), []),
        ("mirror.png", smooth[7][:, ::-1], []),
    ):
        files.append(tmp_path / name)
        cv2.imwrite(str(files[-1]), picture, options)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    files += [tmp_path / "broken.jpg", tmp_path / "missing.jpg"]
    assert near_duplicates.pairs(near_duplicates.thumbnails(files)) == [(3, 20), (5, 21)]


def test_few_pictures_have_no_pairs() -> None:
    assert near_duplicates.pairs(near_duplicates.thumbnails([])) == []
    assert near_duplicates.pairs(np.ones((1, 32, 16), np.uint8)) == []
