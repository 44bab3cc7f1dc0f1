"""Conversions: every tensor is accounted for, what does not fit is refused, the way back is exact to the last bit."""

import dataclasses
import json

import ml_dtypes
import numpy as np
import pytest
import weights
from bucket import install
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load, load_file, save_file

from data_pipelines import files
from irm_jax import checkpoint
from irm_jax.convert import __main__ as command
from irm_jax.convert import bert, conversion, folder, manifest, to_torch
from irm_jax.convert.conversion import Options
from irm_jax.convert.kinds import convert
from irm_jax.convert.source import Source
from irm_jax.models.encoders import vit
from irm_jax.models.weight_files import LAYOUTS, ConvertError

CASES = {
    "bert": (weights.bert("bert.") | weights.word_head() | {"cls.seq_relationship.bias": (2,)}, Options(heads=2)),
    "vit": (weights.vit(), Options(heads=2)),
    "pass": (weights.pass_vit("teacher.module.backbone.") | weights.pass_vit("student.module.backbone."), Options(2)),
    "albef": (weights.albef("model."), Options(heads=2)),
    "irm_release": (weights.irm_release(), Options(heads=2)),
}  # fmt: skip


def converted(kind, tmp_path, shapes=None, options=None, dtype="float32"):
    file = tmp_path / "weights.safetensors"
    tensors = weights.write(shapes or CASES[kind][0], file, dtype)
    source = Source(file)
    return tensors, source, convert(kind, source, options or CASES[kind][1])


@pytest.mark.parametrize("kind", CASES)
def test_every_tensor_is_taken_or_left_with_a_reason_and_the_way_back_is_exact(kind, tmp_path):
    tensors, source, found = converted(kind, tmp_path, dtype="float16" if kind == "vit" else "float32")
    taken, left = {piece.name for piece in found.taken}, dict(found.left)
    assert taken.isdisjoint(left)
    assert taken | set(left) == set(tensors)
    assert found.initial == []
    unknown = {name for name, why in left.items() if conversion.UNKNOWN in why}
    assert unknown == {name for name in tensors if name.startswith("student.")}
    if kind in ("albef", "irm_release"):  # layer 3 there is the second of those that read the image
        prefix = "model." if kind == "albef" else "module."
        layer = f"{prefix}text_encoder.bert.encoder.layer.3"
        assert (found.towers["text_encoder"]["depth"], found.towers["fusion_encoder"]["depth"]) == (2, 2)
        for name, path in (
            (f"{layer}.intermediate.dense.weight", "fusion_encoder/layer_1/mlp/expand/kernel"),
            (f"{prefix}itm_head.weight", "matching_head/kernel"),
            (f"{prefix}text_encoder.cls.predictions.transform.dense.weight", "word_head/transform/kernel"),
        ):
            np.testing.assert_array_equal(found.arrays[path], tensors[name].T)
        cross = found.arrays["fusion_encoder/layer_1/cross_attention/key/kernel"]
        there = tensors[f"{layer}.crossattention.self.key.weight"]
        assert cross[5, 1, 2] == there[4 + 2, 5]  # in 5, head 1 of 4 numbers, its number 2
        assert not [name for name in left if "encoder.layer" in name and "_m." not in name]
        assert ("replaced_head/bias" in found.arrays) == (kind == "irm_release")

    out = folder.save(found, source, tmp_path / "out")
    written, left_there, _ = to_torch.export_folder(out, tmp_path / "back.safetensors")
    back = load_file(tmp_path / "back.safetensors")
    assert sorted(back) == written == sorted(taken)
    assert left_there == list(left)
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
        np.testing.assert_array_equal(tensor, tensors[name], err_msg=name)


def test_bfloat16_weights(tmp_path):
    shapes = weights.bert()
    rng = np.random.default_rng(0)
    save_file({n: rng.normal(size=s).astype(ml_dtypes.bfloat16) for n, s in shapes.items()}, tmp_path / "w.safetensors")
    source = Source(tmp_path / "w.safetensors")
    out = folder.save(convert("bert", source, Options(heads=2)), source, tmp_path / "out")
    to_torch.export_folder(out, tmp_path / "back.safetensors")
    for name, tensor in Source(tmp_path / "back.safetensors").tensors.items():
        assert tensor.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensor, source.tensors[name])


def test_other_numbers_are_refused(tmp_path):
    with pytest.raises(ConvertError, match="is float64, not float32, float16, bfloat16"):
        converted("bert", tmp_path, weights.bert(), dtype="float64")


def test_layouts_by_hand():
    """Width 4, two heads of two: which number goes where."""
    sizes = {"width": 4, "heads": 2, "grid": (2, 1)}
    query = np.arange(16.0).reshape(4, 4)  # [out, in]
    kernel = LAYOUTS["head_kernel"].read(query, sizes)
    assert kernel.shape == (4, 1, 2, 2)
    assert kernel[3, 0, 1, 0] == query[2, 3]  # out 2 is head 1's first number
    fused = np.arange(48.0).reshape(12, 4)
    assert LAYOUTS["fused_kernel"].read(fused, sizes)[1, 2, 1, 1] == fused[8 + 3, 1]
    assert LAYOUTS["output_kernel"].read(query, sizes)[1, 0, 3] == query[3, 2]
    patch = np.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert LAYOUTS["convolution"].read(patch, sizes)[1, 2, 0, 1] == patch[1, 0, 1, 2]
    positions = np.arange(3.0).reshape(1, 3, 1)
    assert LAYOUTS["other_positions"].read(positions, sizes).tolist() == [[[[1.0]], [[2.0]]]]


def test_names_of_the_first_bert_files(tmp_path):
    """LayerNorm.gamma and .beta, as in files of 2018."""
    tensors, _, found = converted("bert", tmp_path, weights.bert())
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    save_file(old, tmp_path / "old.safetensors")
    again = convert("bert", Source(tmp_path / "old.safetensors"), Options(heads=2))
    assert again.initial == []
    for path, array in found.arrays.items():
        np.testing.assert_array_equal(again.arrays[path], array)


WRONG = {
    "no heads": ("bert", weights.bert(), Options(), "attention heads does not show.*--heads"),
    "heads that do not divide": ("bert", weights.bert(), Options(heads=3), "no 3 equal heads"),
    "another kind": ("pass", weights.bert(), Options(), "none with patch_embed.proj.weight"),
    "a plain ViT as PASS": ("pass", weights.vit(), Options(heads=2), "say --hw_ratio"),
    "no square grid": ("vit", weights.vit() | {"pos_embed": (1, 9, 8)}, Options(heads=2), "8 patch pos.*hw_ratio"),
    "two towers": ("vit", weights.vit("a.") | weights.vit("b."), Options(heads=2), "'a.', 'b.'; name one by --prefix"),
    "no layers": ("vit", {n: s for n, s in weights.vit().items() if not n.startswith("blocks.")}, Options(heads=2),
                  r"there is no tensor blocks\.0\.mlp\.fc1\.weight"),
    "no positions": ("bert", {n: s for n, s in weights.bert().items() if "position" not in n}, Options(heads=2),
                     r"there is no tensor embeddings\.position_embeddings\.weight"),
    "a layer is missing": (
        "vit", {n: s for n, s in weights.vit(layers=3).items() if not n.startswith("blocks.1.")}, Options(heads=2),
        r"numbered \[0, 2\]",
    ),
    "a shape": (
        "vit", weights.vit() | {"blocks.1.mlp.fc2.weight": (8, 11)}, Options(heads=2),
        r"blocks.1.mlp.fc2.weight \(8, 11\) gives .*contract/kernel \[11, 8\], the model has \[12, 8\]",
    ),
    "register tokens": ("vit", weights.vit() | {"reg_token": (1, 4, 8)}, Options(heads=2), "reg_token cannot be conv"),
    "distilled": ("vit", weights.vit() | {"dist_token": (1, 1, 8)}, Options(heads=2), "distilled DeiT"),
    "cross-attention as bert": ("bert", weights.bert("", 2, 1), Options(heads=2), "use --kind albef"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused(case, tmp_path):
    kind, shapes, options, message = WRONG[case]
    with pytest.raises(ConvertError, match=message):
        converted(kind, tmp_path, shapes, options)


def test_a_word_head_with_a_table_of_its_own_is_left(tmp_path):
    tensors, _, _ = converted("albef", tmp_path)
    tensors["model.text_encoder.cls.predictions.decoder.weight"][3, 3] += 1
    save_file(tensors, tmp_path / "w.safetensors")
    found = convert("albef", Source(tmp_path / "w.safetensors"), Options(heads=2))
    left = dict(found.left)
    for name in ("bias", "decoder.weight", "transform.dense.weight"):
        assert "table of its own" in left[f"model.text_encoder.cls.predictions.{name}"]
    assert "word_head" not in found.towers
    tensors["model.text_encoder.cls.predictions.decoder.bias"][0] += 1  # two names of one array differ: which is right?
    tensors["model.text_encoder.cls.predictions.decoder.weight"][3, 3] -= 1
    del tensors["model.text_encoder.cls.predictions.decoder.weight"]
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ConvertError, match=r"decoder\.bias is a second tensor for word_head/word_bias"):
        convert("albef", Source(tmp_path / "w.safetensors"), Options(heads=2))


def test_a_gap_in_the_layers_with_cross_attention(tmp_path):
    shapes = {n: s for n, s in weights.albef().items() if ".layer.2." not in n} | weights.bert(
        "text_encoder.bert.", 5, 3
    )
    shapes = {name: shape for name, shape in shapes.items() if ".layer.3." not in name}
    with pytest.raises(ConvertError, match=r"cross-attention are numbered \[4\]; expected 3"):
        converted("albef", tmp_path, shapes, Options(heads=2))


def test_a_neck_with_a_bias_is_another_model(tmp_path):
    tensors, _, _ = converted("irm_release", tmp_path)
    tensors["module.feat_bn.bias"][3] = 0.1
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ConvertError, match=r"feat_bn\.bias is not 0"):
        convert("irm_release", Source(tmp_path / "w.safetensors"), Options(heads=2))


def test_heads_of_a_whole_model_are_those_of_the_tower_whose_sizes_do_not_say(tmp_path, monkeypatch):
    monkeypatch.setitem(bert.HEADS, 8, 4)
    monkeypatch.setitem(vit.HEADS, (8, 2), 4)
    towers = converted("irm_release", tmp_path, weights.irm_release(), Options(heads=2))[2].towers
    names = ("image_encoder", "template_encoder", "text_encoder", "fusion_encoder")
    assert [towers[name]["heads"] for name in names] == [2, 4, 4, 4]
    assert towers["template_encoder"]["depth"] == 2


def test_a_released_model_names_every_switch_that_its_computation_needs(tmp_path):
    _, _, found = converted("irm_release", tmp_path)
    for key in ("model.sentence_sep", "model.mask_instruction_padding", "evaluation.metric", "data.sentences.vi"):
        assert f"--config.{key}=" in found.notes[-1]


def test_where_the_editing_transformer_of_a_released_model_comes_from(tmp_path):
    """Copies that never learned have norms of exactly 1 and 0; then the image encoder's first and last block ran."""
    tensors, source, found = converted("irm_release", tmp_path)
    path = "blocks/layer_{}/attention/output/kernel"
    first, second = (f"editing_transformer/{path.format(i)}" for i in (0, 1))
    fused = tensors["module.fusion.1.attn.proj.weight"].T.reshape(2, 4, 8)
    np.testing.assert_array_equal(found.arrays[second], fused)
    for name in tensors:
        if name.startswith("module.fusion.") and ".norm" in name:
            tensors[name] = np.full_like(tensors[name], name.endswith("weight"))
    save_file(tensors, tmp_path / "untrained.safetensors")
    untrained = Source(tmp_path / "untrained.safetensors")
    for asked, file in (("auto", untrained), ("encoder", source)):
        found = convert("irm_release", file, Options(heads=2, editing=asked))
        np.testing.assert_array_equal(found.arrays[first], found.arrays[f"image_encoder/{path.format(0)}"])
        np.testing.assert_array_equal(found.arrays[second], found.arrays[f"image_encoder/{path.format(1)}"])
        assert "never ran" in dict(found.left)["module.fusion.1.attn.proj.weight"]
        assert "which ran in its place" in found.notes[0]
    found = convert("irm_release", untrained, Options(heads=2, editing="fusion"))
    np.testing.assert_array_equal(found.arrays[second], fused)


def test_folders_and_broken_files(tmp_path):
    tensors = weights.write(weights.bert(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(15))]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {w: i for i, w in enumerate(words)}}}))
    source = Source(tmp_path)
    out = folder.save(convert("bert", source, Options()), source, tmp_path / "out")
    assert (out / "vocab.txt").read_text().split("\n")[:-1] == words
    assert manifest.read(out)["vocabulary"] == manifest.fingerprint(words)
    before = (out / "manifest.json").read_bytes()
    assert folder.save(convert("bert", source, Options()), source, out) == out, "killed at its end, it is given again"
    assert (out / "manifest.json").read_bytes() == before
    other = dataclasses.replace(convert("bert", source, Options()), notes=["of something else"])
    with pytest.raises(ConvertError, match="holds another conversion already"):
        folder.save(other, source, out)
    # The same in two shards: the same tensors.
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    halves = list(tensors)[::2], list(tensors)[1::2]
    places = {name: f"{i}.safetensors" for i, names in enumerate(halves) for name in names}
    for i, names in enumerate(halves):
        save_file({name: tensors[name] for name in names}, sharded / f"{i}.safetensors")
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert set(Source(sharded).tensors) == set(tensors)
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "model.safetensors").read_bytes()[:500])
    with pytest.raises(ConvertError, match=r"cut\.safetensors is no readable weight file"):
        Source(tmp_path / "cut.safetensors")
    with pytest.raises(ConvertError, match="no file or folder"):
        Source(tmp_path / "nothing.pth")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConvertError, match=r"holds none of model\.safetensors"):
        Source(tmp_path / "empty")


def test_the_command_prints_what_became_of_every_tensor(tmp_path, capsys):
    file = tmp_path / "weights.safetensors"
    weights.write(weights.vit() | {"mystery": (2,)}, file)
    arguments = ["--kind", "vit", "--source", str(file), "--out", str(tmp_path / "out"), "--heads", "2"]
    assert command.main(arguments) == 0
    printed = capsys.readouterr().out
    assert (
        "blocks.N.attn.qkv.weight [24, 8] -> image_encoder/blocks/layer_N/attention/query_key_value/kernel" in printed
    )
    assert "head.weight (classifier of the pre-training data)" in printed
    assert "left: 3 tensors, of them 1 UNKNOWN" in printed
    assert "mystery (no rule knows this name)" in printed
    assert command.main(arguments) == 0, "the same conversion is there already"
    assert command.main([*arguments[:-1], "1"]) == 2, "another"
    assert command.main(["--source", str(tmp_path / "out"), "--to_torch", str(tmp_path / "b.safetensors")]) == 0
    assert "not in it: 3" in capsys.readouterr().out


def test_folders_and_files_in_a_bucket(tmp_path, monkeypatch):
    bucket = install(monkeypatch)
    _, source, found = converted("vit", tmp_path)
    places = []
    monkeypatch.setattr(checkpoint, "save_arrays", lambda place, tree: places.append(str(place)))
    assert str(folder.save(found, source, "gs://b/weights")) == "gs://b/weights"
    assert places == ["gs://b/weights/arrays"]
    assert manifest.read("gs://b/weights")["kind"] == "vit"
    with pytest.raises(ConvertError, match="gs://b/weights holds another conversion already"):
        folder.save(dataclasses.replace(found, notes=["of something else"]), source, "gs://b/weights")
    monkeypatch.undo()

    local, bucket = folder.save(found, source, tmp_path / "out"), install(monkeypatch)
    to_torch.export_folder(local, "gs://b/back.safetensors")
    assert sorted(load(bucket.files["b/back.safetensors"])) == sorted({piece.name for piece in found.taken})
    with pytest.raises(checkpoint.CheckpointError, match="gs://b/run/checkpoints"):
        to_torch.export_run("gs://b/run", "vit", tmp_path / "f")
    with pytest.raises(ConvertError, match=r"gs://b/w\.pth: weights are read from a local file"):
        Source("gs://b/w.pth")


def test_a_kind_of_storage_that_is_not_known_and_an_export_that_fails_are_one_message(tmp_path, caplog):
    weights.write(weights.vit(), tmp_path / "w.safetensors")
    source = ["--source", str(tmp_path / "w.safetensors")]
    assert command.main(["--kind", "vit", *source, "--out", "ftp://b/out"]) == 2
    assert "--out: 'ftp://b/out' is on no known kind of storage" in caplog.text
    assert command.main(["--source", str(tmp_path), "--to_torch", str(tmp_path / "b.safetensors")]) == 2
    assert "holds no readable manifest.json" in caplog.text


def test_a_layout_and_heads_that_the_weights_do_not_show(tmp_path):
    """TransReID with stride 12 has 21 x 10 positions; its vit_small is 768 wide and has 8 heads."""
    shapes = weights.pass_vit() | {"pos_embed": (1, 210, 8)}
    with pytest.raises(ConvertError, match=r"210 patch positions .* say --hw_ratio, or --grid ROWSxCOLUMNS"):
        converted("pass", tmp_path, shapes, Options(heads=2))
    tensors, _, found = converted("pass", tmp_path, shapes, Options(heads=2, grid=(21, 10)))
    assert found.towers["image_encoder"]["grid"] == (21, 10)
    row = found.arrays["image_encoder/grid_positions"][0, 3, 4]
    np.testing.assert_array_equal(row, tensors["pos_embed"][0, 3 * 10 + 4])
    for wrong in ((7, 10), (42, 20)):
        with pytest.raises(ConvertError, match=r"say --(hw_ratio, or --)?grid"):
            converted("pass", tmp_path, shapes, Options(heads=2, grid=wrong))
    assert (
        vit.HEADS[768, 12], vit.HEADS[1280, 32], vit.HEADS.get((768, 8)), bert.HEADS[768], bert.HEADS.get(384)
    ) == (12, 16, None, 12, None)  # fmt: skip
    for kind, shapes in (("vit", weights.vit()), ("pass", weights.pass_vit()), ("albef", weights.albef())):
        with pytest.raises(ConvertError, match=r"number of attention heads does not show in the weights.* --heads"):
            converted(kind, tmp_path, shapes, Options())


def test_a_transposed_matrix_is_refused(tmp_path):
    """It has as many numbers as the right one; that of a square matrix cannot be told."""
    for kind, shapes, name in (
        ("vit", weights.vit(), "blocks.1.attn.qkv.weight"),
        ("bert", weights.bert(), "encoder.layer.0.intermediate.dense.weight"),
    ):
        tensors = weights.write(shapes, tmp_path / "w.safetensors")
        tensors[name] = np.ascontiguousarray(tensors[name].T)
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(ConvertError, match=r"does not fit|do not fit"):
            convert(kind, Source(tmp_path / "w.safetensors"), Options(heads=2))


def test_a_number_of_a_layer_may_be_of_any_length(tmp_path):
    shapes = weights.vit() | {f"blocks.{'1' * 5000}.norm1.weight": (8,)}
    weights.write(shapes, tmp_path / "w.safetensors")
    assert len(Source(tmp_path / "w.safetensors").tensors) == len(shapes)


@pytest.mark.parametrize(("key", "value"), [("hidden_act", "relu"), ("layer_norm_eps", 1e-5), ("is_decoder", True)])
def test_what_a_configuration_says_of_another_computation_is_refused(key, value, tmp_path):
    """The weights do not show it: their features would be of no model that was trained."""
    weights.write(weights.bert(), tmp_path / "model.safetensors")
    stated = {"num_attention_heads": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
    for config in (stated, {**stated, key: value}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if config is stated:
            convert("bert", Source(tmp_path), Options())
            continue
        with pytest.raises(ConvertError, match=f"config.json: {key} is {value!r}, but the text encoder here computes"):
            convert("bert", Source(tmp_path), Options())


def test_a_vocabulary_of_other_weights_is_left_with_a_word(tmp_path):
    weights.write(weights.bert(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 2}')
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n")
    source = Source(tmp_path)
    found = convert("bert", source, Options())
    folder.save(found, source, tmp_path / "out")
    assert not (tmp_path / "out" / "vocab.txt").exists()
    assert found.notes[-1] == "the vocabulary beside the weights is left: it has 3 entries, the table 20 rows"


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        tensors = weights.write(weights.vit(), tmp_path / "w.safetensors")
        tensors["blocks.1.mlp.fc2.weight"][3, 2] = value
        save_file(tensors, tmp_path / "w.safetensors")
        with pytest.raises(ConvertError, match=r"blocks\.1\.mlp\.fc2\.weight holds NaN or infinity \(1 of 96"):
            convert("vit", Source(tmp_path / "w.safetensors"), Options(heads=2))


def test_a_conversion_that_was_killed_is_made_anew_and_a_changed_one_is_refused(tmp_path):
    _, source, found = converted("vit", tmp_path)
    out = folder.save(found, source, tmp_path / "out")
    whole = (out / "manifest.json").read_text()
    for half in (whole[: len(whole) // 2], "", "[]"):
        (out / "manifest.json").write_text(half)
        with pytest.raises(manifest.ManifestError, match=r"holds no readable manifest\.json"):
            folder.load(out)
        folder.save(found, source, out)
        assert (out / "manifest.json").read_text() == whole
    (out / "manifest.json").write_text(whole.replace('"bicubic"', '"bilinear"'))
    with pytest.raises(manifest.ManifestError, match="was changed since it was written, or is damaged"):
        folder.load(out)
    earlier = {key: value for key, value in json.loads(whole).items() if key not in ("sha256", "arrays")}
    (out / "manifest.json").write_text(json.dumps(earlier))
    folder.load(out)  # of an earlier version
    (out / "manifest.json").write_text(whole)
    arrays = {**found.arrays, "image_encoder/final_norm/bias": found.arrays["image_encoder/final_norm/bias"] + 1}
    checkpoint.save_arrays(out / "arrays", unflatten_dict(arrays, sep="/"))
    with pytest.raises(manifest.ManifestError, match=r"1 of .* arrays are damaged.* image_encoder/final_norm/bias"):
        folder.load(out)
    with files.lock(tmp_path / "held"), pytest.raises(files.LockedError):
        folder.save(found, source, tmp_path / "held")


BROKEN = {
    "pointer.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 343\n", "pointer of Git LFS"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "git lfs pull"),
    "page.pth.tar": (b"\n<!DOCTYPE html>\n<html><head>Google Drive", "is a web page, not weights"),
    "page.onnx": (b"<html>sign in</html>", "is a web page, not weights"),
    "said.bin": (b'{"error": "Access denied"}', "holds text, not weights: .*Access denied"),
    "empty.pth": (b"", "is empty: download it again"),
    "cut.pth": (b"PK\x03\x04" + bytes(range(256)), "is cut off or damaged .260 bytes"),
    "old.pth": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "is cut off or damaged"),
    "packed.pth.tar": (b"\0" * 257 + b"ustar\x0000" + b"\0" * 300, "is an archive"),
    "noise.pth": (bytes(range(128, 256)) * 3, "is no PyTorch file|is cut off"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_weight_file_is_said_in_our_words(name, tmp_path):
    if name.endswith((".pth", ".tar")) and name not in ("pointer.pth", "page.pth.tar", "empty.pth"):
        pytest.importorskip("torch")
    content, message = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConvertError, match=message) as caught:
        Source(tmp_path / name)
    assert name in str(caught.value)
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("broken", [b"{", b"\xff\xfe", b"[1]", b'{"a":' * 100_000])
def test_broken_files_beside_the_weights_are_named(broken, tmp_path):
    weights.write(weights.bert(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(broken)
    with pytest.raises(ConvertError, match=r"config\.json (is no readable JSON|holds a list)"):
        Source(tmp_path)
    (tmp_path / "config.json").write_text('{"num_attention_heads": "two"}')
    with pytest.raises(ConvertError, match="num_attention_heads is 'two'; say --heads"):
        convert("bert", Source(tmp_path), Options())
    (tmp_path / "tokenizer.json").write_bytes(broken)
    with pytest.raises(ConvertError, match=r"tokenizer\.json"):
        Source(tmp_path).vocabulary()
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConvertError, match=r"vocab\.txt is not UTF-8"):
        Source(tmp_path).vocabulary()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.safetensors.index.json").write_bytes(broken)
    with pytest.raises(ConvertError, match=r"index\.json"):
        Source(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "1.safetensors"}}')
    with pytest.raises(ConvertError, match=r"names files that are not there: 1\.safetensors"):
        Source(tmp_path / "other")


def test_weight_decay_alone_is_no_training(tmp_path):
    """A learning rate of 6e-5 and 1,000 steps leave scales of .99994."""
    tensors, _, _ = converted("irm_release", tmp_path)
    for name in tensors:
        if name.startswith("module.fusion.") and ".norm" in name:
            tensors[name] = np.full_like(tensors[name], 0.99994 if name.endswith("weight") else 0.0)
    save_file(tensors, tmp_path / "decayed.safetensors")
    found = convert("irm_release", Source(tmp_path / "decayed.safetensors"), Options(heads=2))
    assert "which ran in its place" in found.notes[0]
    tensors["module.fusion.1.norm2.weight"][3] += 1e-3
    save_file(tensors, tmp_path / "learned.safetensors")
    found = convert("irm_release", Source(tmp_path / "learned.safetensors"), Options(heads=2))
    assert "which was trained" in found.notes[0]


def test_original_names_load_where_they_came_from(tmp_path):
    """A .pth.tar keeps its weights in a dictionary `state_dict`, whose keys are the names."""
    torch = pytest.importorskip("torch")
    tensors = weights.write(weights.irm_release(), tmp_path / "w.safetensors")
    released = {"state_dict": {name: torch.from_numpy(x) for name, x in tensors.items()}, "epoch": 3, "best_mAP": 0.5}
    torch.save(released, tmp_path / "w.pth.tar")
    source = Source(tmp_path / "w.pth.tar")
    out = folder.save(convert("irm_release", source, Options(heads=2)), source, tmp_path / "out")
    assert command.main(["--source", str(out), "--to_torch", str(tmp_path / "back.safetensors")]) == 0
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) < set(tensors)
    assert all(name.startswith("module.") for name in back)
    assert command.main(["--source", str(out), "--to_torch", str(tmp_path / "new" / "back.pth.tar")]) == 0
    loaded = torch.load(tmp_path / "new" / "back.pth.tar", weights_only=True)
    assert set(loaded) == {"state_dict"}
    assert set(loaded["state_dict"]) == set(back)
    for name, tensor in loaded["state_dict"].items():
        np.testing.assert_array_equal(tensor.numpy(), tensors[name])
    assert command.main(["--source", str(out), "--to_torch", str(tmp_path / "back.npz")]) == 2
