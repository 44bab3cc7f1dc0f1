"""Names that PyTorch's ONNX exporter loses, from a graph made by hand."""

import numpy as np
import pytest

from irm_jax.convert import onnx_source
from irm_jax.convert.source import Source
from irm_jax.models.weight_files import ConvertError

onnx = pytest.importorskip("onnx", reason="needs pip install onnx (the extra `convert`)")


@pytest.fixture
def file(tmp_path):
    """Two linear layers, one with its bias on the left of the sum, and position embeddings in two parts."""
    rng = np.random.default_rng(0)
    arrays = {
        "m.embeddings.cls_token": (1, 1, 4), "m.fc1.bias": (6,), "onnx::MatMul_7": (4, 6), "m.fc2.bias": (4,),
        "onnx::MatMul_9": (6, 4), "onnx::MatMul_11": (4, 4), "onnx::Concat_3": (1, 1, 4), "onnx::Reshape_5": (1, 9, 4),
    }  # fmt: skip
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in arrays.items()}
    shapes = {"grid": [1, 3, 3, 4], "flat": [1, 9, 4]}
    node = onnx.helper.make_node
    nodes = [
        node("Reshape", ["onnx::Reshape_5", "grid"], ["a"]), node("Reshape", ["a", "flat"], ["b"]),
        node("Concat", ["onnx::Concat_3", "b"], ["positions"], axis=1), node("Add", ["x", "positions"], ["c"]),
        node("MatMul", ["c", "onnx::MatMul_7"], ["d"]), node("Add", ["d", "m.fc1.bias"], ["e"]),
        node("MatMul", ["e", "onnx::MatMul_9"], ["f"]), node("Add", ["m.fc2.bias", "f"], ["g"]),
        node("MatMul", ["g", "onnx::MatMul_11"], ["y"]),
    ]  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes, "g", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 10, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 10, 4])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
        + [onnx.numpy_helper.from_array(np.array(shape, np.int64), name) for name, shape in shapes.items()],
    )  # fmt: skip
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "w.onnx"))
    return tmp_path / "w.onnx", arrays


def test_names_come_from_the_graph(file):
    path, arrays = file
    source = Source(path)
    np.testing.assert_array_equal(source.tensors["m.fc1.weight"], arrays["onnx::MatMul_7"].T)
    np.testing.assert_array_equal(source.tensors["m.fc2.weight"], arrays["onnx::MatMul_9"].T)
    both = np.concatenate([arrays["onnx::Concat_3"], arrays["onnx::Reshape_5"]], axis=1)
    np.testing.assert_array_equal(source.tensors["m.embeddings.position_embeddings"], both)
    # What the graph says nothing about keeps the exporter's name, and is reported as unknown later on.
    assert {name for name in source.tensors if name.startswith("onnx::")} == {"onnx::MatMul_11"}
    assert "2 weights by their biases" in source.notes[0]


def test_what_is_no_onnx_file_or_cannot_be_read_is_said(tmp_path, monkeypatch):
    (tmp_path / "w.onnx").write_bytes(b"\xff\x00no graph")
    with pytest.raises(ConvertError, match=r"w\.onnx is no readable weight file"):
        Source(tmp_path / "w.onnx")

    def missing(file):
        raise ImportError("no onnx")

    monkeypatch.setattr(onnx_source, "read", missing)
    with pytest.raises(ConvertError, match="the package onnx is not installed: pip install"):
        Source(tmp_path / "w.onnx")


def test_a_graph_in_a_circle_comes_to_an_end(file):
    path, arrays = file
    model = onnx.load(str(path))
    circle = [node for node in model.graph.node if node.op_type == "Reshape"]
    circle[0].input[0] = circle[1].output[0]
    onnx.save(model, str(path))
    found, notes = onnx_source.read(path)
    assert "m.embeddings.position_embeddings" not in found
    np.testing.assert_array_equal(found["onnx::Reshape_5"], arrays["onnx::Reshape_5"])
    assert notes == ["names from the graph: 2 weights by their biases"]
