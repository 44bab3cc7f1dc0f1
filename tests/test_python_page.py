"""docs/python.md: every example runs, in order, on a checkpoint of a short training."""

import re
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest

PAGE = Path(__file__).parents[1] / "docs" / "python.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
OPTIONAL = {name: [one for one in EXAMPLES if name in one] for name in ("torch", "sklearn")}
"""Examples that need a package which this project does not install."""

pytestmark = pytest.mark.usefixtures("first_devices", "quick_programs")


def run(example, names):
    exec(compile(example, str(PAGE), "exec"), names)


@pytest.fixture(scope="module")
def names(trained_run, tmp_path_factory):
    """What the examples start from."""
    folder, rng = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    pictures = [PIL.Image.fromarray(rng.integers(0, 255, (48, 24, 3), np.uint8)) for _ in range(4)]
    paths = [str(folder / f"{number}.png") for number in range(4)]
    for picture, path in zip(pictures, paths, strict=True):
        picture.save(path)
    template = str(folder / "template.png")
    assert cv2.imwrite(template, rng.integers(0, 255, (16, 16, 3), np.uint8))
    return {
        "RUN": trained_run, "paths": paths, "pictures": pictures, "template": template, "folder": folder / "model"
    }  # fmt: skip


def test_the_examples_of_the_page_run(names):
    examples = [one for one in EXAMPLES if not any(one in others for others in OPTIONAL.values())]
    assert len(examples) == 7
    for example in examples:
        run(example, names)
    paths, pictures, gallery, found = (names[key] for key in ("paths", "pictures", "gallery", "found"))
    assert names["numbers"].shape == (2, 2)
    np.testing.assert_allclose(names["loaded"], names["again"].embed(paths), atol=1e-5)
    np.testing.assert_allclose(names["stream"], names["embedder"].embed(pictures, "ignore clothes"), atol=1e-6)
    assert names["half"].dtype == np.float16
    # By hand: each query has one right image under another camera, and its own image is junk.
    scores = gallery[:2] @ gallery.T
    ranks = [1 + int((scores[q, [1 - q, 3 - q]] > scores[q, 2 + q]).sum()) for q in (0, 1)]
    assert found.mAP == pytest.approx(np.mean([1 / rank for rank in ranks]))


def test_a_data_loader_of_torch_is_an_input(names):
    pytest.importorskip("torch", reason="needs pip install 'irm_jax[parity]'")
    import irm_jax

    [example] = OPTIONAL["torch"]
    embedder = irm_jax.Embedder(names["RUN"])
    own = {**names, "np": np, "embedder": embedder}
    run(example, own)
    np.testing.assert_allclose(own["from_torch"], embedder.embed(names["pictures"], "ignore clothes"), atol=1e-6)


def test_a_pipeline_of_scikit_learn_embeds(names):
    pytest.importorskip("sklearn", reason="needs pip install 'irm_jax[explain]'")
    import irm_jax

    [example] = OPTIONAL["sklearn"]
    own = {**names, "embedder": irm_jax.Embedder(names["RUN"])}
    run(example, own)
    assert own["named"].tolist() == ["ann", "bob"]
