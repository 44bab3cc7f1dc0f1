"""docs/python.md: every example runs, in order, on a checkpoint of a short training."""

import re
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "python.md"

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


def test_the_examples_of_the_page_run(trained_run, tmp_path):
    rng = np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 255, (48, 24, 3), np.uint8)) for _ in range(4)]
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    template = str(tmp_path / "template.png")
    assert cv2.imwrite(template, rng.integers(0, 255, (16, 16, 3), np.uint8))
    names = {
        "RUN": trained_run, "paths": paths, "pictures": pictures, "template": template,
        "folder": tmp_path / "model",
    }  # fmt: skip
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(examples) == 7
    for example in examples:
        exec(compile(example, str(PAGE), "exec"), names)
    gallery, found = names["gallery"], names["found"]
    assert names["numbers"].shape == (2, 2)
    np.testing.assert_allclose(names["loaded"], names["again"].embed(paths), atol=1e-5)
    np.testing.assert_allclose(names["stream"], names["embedder"].embed(pictures, "ignore clothes"), atol=1e-6)
    assert names["half"].dtype == np.float16
    # By hand: each query has one right image under another camera, and its own image is junk.
    scores = gallery[:2] @ gallery.T
    ranks = [1 + int((scores[q, [1 - q, 3 - q]] > scores[q, 2 + q]).sum()) for q in (0, 1)]
    assert found.mAP == pytest.approx(np.mean([1 / rank for rank in ranks]))
