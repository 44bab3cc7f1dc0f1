"""The networks: shapes, options that must not change the result, and that a repeated sentence is encoded once."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import few_optimizations

from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import run
from irm_jax.compile import analytic_flops
from irm_jax.models import presets, transformer
from irm_jax.models.config import REMAT
from irm_jax.models.encoders import vit
from irm_jax.models.irm import IRM, initialise
from irm_jax.models.plain_forms import plain_forms
from irm_jax.parallel.rules import path_string

pytestmark = pytest.mark.usefixtures("quick_programs")


def variables_of(model, length):
    return jax.jit(lambda key: model.init(key, jnp.ones((1, length), jnp.int32), method=initialise))(jax.random.key(0))


def apply(model, variables, *arrays, **options):
    """As one program: operation by operation it takes much longer to compile."""
    return jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, **options))(variables, *arrays)


@pytest.fixture(scope="module")
def prepared(make_micro_config):
    config = make_micro_config()
    built = run.build(config)
    data, model = built.data, built.model
    with data.stream(0, 1, range(data.plan.batch_blocks), ReadAhead(workers=0, threads=0, prefetch=1)) as stream:
        batch = jax.tree.map(jnp.asarray, next(stream)[1])
    with few_optimizations():
        return model, variables_of(model, model.config.max_length), batch, data


def test_outputs_have_the_documented_shapes(prepared):
    model, variables, batch, data = prepared
    output, _ = apply(
        model, variables, batch, jnp.asarray(data.plan.constant_tokens), train=True, mutable=["batch_stats"],
        rngs={"dropout": jax.random.key(0)},
    )  # fmt: skip
    blocks, width = data.plan.batch_blocks, model.config.width
    plain = data.plan.rows("text") + data.plan.rows("visual")
    composed = data.plan.composed_rows("text") + data.plan.composed_rows("visual")
    assert composed > 0
    edited, caption = output.edited, output.caption
    assert edited.cls.shape == edited.cls_neck.shape == (blocks, plain, width)
    assert edited.person.shape == edited.guided.shape == (blocks, plain + composed, width)
    assert edited.instruction.shape == (blocks, plain + composed, width)
    assert caption.image.shape == caption.text.shape == (blocks, data.plan.rows("caption"), 8)
    assert output.heads["person"].shape == (width, model.config.num_identities)
    # Each stream has statistics of its own, over all rows of all groups.
    for stream in (edited.person, edited.guided):
        rows = np.asarray(stream).reshape(-1, width)
        np.testing.assert_allclose(rows.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(rows.var(0), 1, rtol=5e-2)


def test_a_repeated_sentence_is_encoded_once(prepared):
    """The text encoder runs on the constants and on the blocks' distinct sentences, never once a row."""
    model, variables, batch, data = prepared
    lengths = []
    original = IRM.encode_captions

    def spy(self, tokens, *, train=False):
        lengths.append(tokens.shape[0])
        return original(self, tokens, train=train)

    IRM.encode_captions = spy
    try:
        constants = jnp.asarray(data.plan.constant_tokens)
        jax.eval_shape(lambda v, b: model.apply(v, b, constants, train=False), variables, batch)
    finally:
        IRM.encode_captions = original
    sharded = data.plan.batch_blocks * (data.plan.entries("text") + data.plan.rows("caption"))
    assert sorted(lengths) == sorted([len(data.plan.constants), sharded])
    assert data.plan.entries("text") < data.plan.rows("text")


def test_training_and_evaluation_paths_agree(prepared):
    """The features of a row in a joint batch equal those of the same image and instruction embedded alone."""
    model, variables, batch, data = prepared
    constants = jnp.asarray(data.plan.constant_tokens)
    output = apply(model, variables, batch, constants, train=False)

    def alone(m, image, tokens):
        return m.embed(m.encode_images(image), m.encode_sentences(tokens))

    group = batch["text"]
    for row in range(group["image"].shape[1]):
        index = int(group["instruction"][3, row])
        tokens = constants[-1 - index] if index < 0 else group["table"][3, index]
        single = model.apply(variables, group["image"][3, row][None], tokens[None], method=alone)
        np.testing.assert_allclose(single.person[0], output.edited.person[3, row], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(single.guided[0], output.edited.guided[3, row], rtol=1e-4, atol=1e-4)


def test_padding_of_a_sentence_changes_nothing_unless_asked(prepared):
    model, variables, _, _ = prepared
    image = jax.random.randint(jax.random.key(1), (2, *model.config.image_size, 3), 0, 255).astype(jnp.uint8)
    tokens = jnp.array([[2, 7, 8, 3], [2, 9, 10, 3]], jnp.int32)
    longer = jnp.pad(tokens, ((0, 0), (0, 20)))

    def embedding(m, tokens):
        return m.embed(m.encode_images(image), m.encode_sentences(tokens)).embedding

    short, long = (model.apply(variables, t, method=embedding) for t in (tokens, longer))
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)
    released = IRM(dataclasses.replace(model.config, mask_instruction_padding=False))
    short, long = (released.apply(variables, t, method=embedding) for t in (tokens, longer))
    assert np.abs(np.asarray(short - long)).max() > 1e-3


def test_what_pads_a_template_is_never_attended_to(prepared):
    """Zero tokens that bring templates to the length of sentences are nobody's padding, released or not."""
    model, variables, _, _ = prepared
    released = IRM(dataclasses.replace(model.config, mask_instruction_padding=False))
    image = jax.random.randint(jax.random.key(1), (2, *model.config.image_size, 3), 0, 255).astype(jnp.uint8)
    template = jax.random.randint(jax.random.key(2), (2, *model.config.instruction_image_size, 3), 0, 255)

    def embedding(m, length):
        return m.embed(m.encode_images(image), m.encode_templates(template.astype(jnp.uint8), length)).embedding

    short, long = (released.apply(variables, n, method=embedding) for n in (17, 40))
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)


def test_a_model_without_identities_still_has_heads_of_a_size(micro_config):
    assert run.model_config(micro_config, num_identities=0).num_identities == 64


@pytest.mark.parametrize("norm_first", [True, False])
def test_scan_and_remat_equal_the_plain_stack(norm_first):
    config = transformer.BlockConfig(width=16, heads=2, norm_first=norm_first)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    mask = jnp.array([[True] * 5, [True] * 3 + [False] * 2, [True] * 5])
    plain = transformer.Stack(config, 3)
    params = plain.init(jax.random.key(1), x, mask, deterministic=True)["params"]
    layers = [params[f"layer_{i}"] for i in range(3)]
    stacked = {"layers": {"block": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}}

    def loss(stack, params):
        return jnp.sum(stack.apply({"params": params}, x, mask, deterministic=True) ** 3)

    expected, gradient = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(params)
    for stack in (
        *(transformer.Stack(config, 3, remat=remat) for remat in ("minimal", "full")),
        *(transformer.Stack(config, 3, scan_layers=True, remat=remat) for remat in REMAT),
    ):
        own = stacked if stack.scan_layers else params
        value, found = jax.jit(jax.value_and_grad(lambda p, s=stack: loss(s, p)))(own)
        np.testing.assert_allclose(value, expected, rtol=1e-5)
        if stack.scan_layers:
            found = {f"layer_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], found["layers"]["block"]) for i in range(3)}
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), found, gradient)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_the_first_tokens_alone_are_the_same(scan_layers):
    stack = transformer.Stack(transformer.BlockConfig(width=16, heads=2), 2, scan_layers=scan_layers)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    variables = stack.init(jax.random.key(1), x, deterministic=True)
    first = stack.apply(variables, x, queries=2, deterministic=True)
    np.testing.assert_allclose(first, stack.apply(variables, x, deterministic=True)[:, :2], rtol=1e-5)


def test_queries_keys_and_values_are_one_product_cut_in_three():
    config = transformer.BlockConfig(width=16, heads=2)
    layer = transformer.QueryKeyValue(config)
    x = jax.random.normal(jax.random.key(0), (3, 5, 16))
    params = layer.init(jax.random.key(1), x, None)["params"]
    params = {"kernel": params["kernel"], "bias": jax.random.normal(jax.random.key(2), (3, 2, 8))}
    whole = jnp.einsum("bnd,dkhe->kbhne", x, params["kernel"]) + params["bias"][:, None, :, None]
    query, key, value = layer.apply({"params": params}, x, 2)
    assert query.shape == (3, 2, 2, 8)
    for found, expected in zip((query, key, value), (whole[0, :, :, :2], whole[1], whole[2]), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 25, dtype=np.float32)
    exact = [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()]
    np.testing.assert_allclose(transformer.gelu(jnp.asarray(x)), exact, rtol=1e-6, atol=1e-6)


def test_the_editing_transformer_reads_as_many_tokens_of_a_sentence_as_it_is_told(prepared):
    """Fewer than the sentence has: its last tokens are left out. As many as it has: nothing changes."""
    model, variables, _, _ = prepared
    assert model.config.instruction_tokens == 24
    image = jax.random.randint(jax.random.key(1), (2, *model.config.image_size, 3), 0, 255).astype(jnp.uint8)
    sentence = jnp.zeros((2, 40), jnp.int32).at[:, :20].set(jax.random.randint(jax.random.key(3), (2, 20), 5, 40))

    def embedding(tokens, count):
        own = IRM(dataclasses.replace(model.config, instruction_tokens=count))

        def both(m, image, tokens):
            instruction = m.encode_sentences(tokens)
            return m.embed(m.encode_images(image), instruction).embedding, instruction

        return own.apply(variables, image, tokens, method=both)

    whole, read = embedding(sentence, None)
    assert read.tokens.shape[1] == 40
    short, read = embedding(sentence, 24)
    assert read.tokens.shape[1] == read.mask.shape[1] == 24
    np.testing.assert_allclose(short, whole, rtol=1e-5, atol=1e-5)
    cut, read = embedding(sentence, 18)
    assert read.tokens.shape[1] == 18
    assert np.abs(np.asarray(cut - whole)).max() > 1e-3


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
    config = transformer.BlockConfig(width=8, heads=2)
    stack = transformer.Stack(config, 1, drop_path=(0.5,))
    x = jax.random.normal(jax.random.key(0), (400, 3, 8))
    variables = stack.init(jax.random.key(1), x, deterministic=True)
    quiet = stack.apply(variables, x, deterministic=True)
    noisy = stack.apply(variables, x, deterministic=False, rngs={"dropout": jax.random.key(2)})
    untouched = np.isclose(np.asarray(noisy), np.asarray(x)).all(axis=(1, 2)).mean()
    assert 0.15 < untouched < 0.35  # both branches dropped: 1/4
    assert not np.allclose(noisy, quiet)


def test_a_drop_path_of_nothing_drops_nothing_in_bfloat16():
    """A draw of .9990 is 1.0 in bfloat16, which is not below 1."""
    config = transformer.BlockConfig(width=4, heads=2, dtype=jnp.bfloat16)
    block = transformer.Block(config, stochastic_depth=True, deterministic=False)
    x = jax.random.normal(jax.random.key(0), (8000, 2, 4), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms promote bf16 with f32
        noisy, variables = block.init_with_output(jax.random.key(1), x, None, jnp.float32(0.0))
        quiet = block.clone(deterministic=True).apply(variables, x, None, jnp.float32(0.0))
    np.testing.assert_array_equal(np.asarray(noisy, np.float32), np.asarray(quiet, np.float32))


def test_scores_of_bfloat16_are_rounded_once():
    query, key = (jax.random.normal(jax.random.key(n), (2, 3, 5, 16), jnp.bfloat16) for n in (0, 1))
    exact = np.einsum("bhqd,bhkd->bhqk", *(np.asarray(x, np.float64) for x in (query, key)))
    found = transformer.attention_scores(query, key)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(found, np.float32), exact.astype(jnp.bfloat16).astype(np.float32))
    single = transformer.attention_scores(query.astype(jnp.float32), key.astype(jnp.float32))
    np.testing.assert_allclose(single, exact, rtol=1e-6, atol=1e-6)


def test_attention_mixes_values_by_the_softmax_of_scores():
    draw = np.random.default_rng(0)
    scores, value, weight = (draw.normal(size=shape) * 3 for shape in ((2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 4, 6)))
    scores[0, :, :, 2:] = np.finfo(np.float32).min  # padding
    scores[1, 0, 0] = np.finfo(np.float32).min  # nothing may be attended to: the mean

    def softmax_product(scores, value):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return np.einsum("bhqk,bhkd->bhqd", weights / weights.sum(-1, keepdims=True), value)

    expected = softmax_product(scores, value)
    np.testing.assert_allclose(expected[1, 0, 0], value[1, 0].mean(0))
    with jax.enable_x64(True):
        arrays = jnp.asarray(scores), jnp.asarray(value)
        np.testing.assert_allclose(transformer.attend(*arrays), expected, rtol=1e-12)
        gradients = jax.grad(lambda *x: (weight * transformer.attend(*x)).sum(), argnums=(0, 1))(*arrays)
    for _ in range(3):
        way = [draw.normal(size=x.shape) * 1e-5 for x in (scores, value)]
        way[0][scores < -1e30] = 0.0
        ends = [(weight * softmax_product(scores + s * way[0], value + s * way[1])).sum() for s in (1, -1)]
        slope = 2 * sum((np.asarray(g) * w).sum() for g, w in zip(gradients, way, strict=True))
        np.testing.assert_allclose(slope, ends[0] - ends[1], rtol=1e-6)


@pytest.mark.parametrize(("platform", "after"), [("cpu", True), ("tpu", False), ("cuda", False)])
def test_attention_divides_after_the_product_on_a_cpu_only(platform, after):
    arrays = jnp.zeros((1, 2, 4, 5)), jnp.zeros((1, 2, 5, 3))
    program = jax.jit(transformer.attend).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
    assert (program.rindex("stablehlo.divide") > program.rindex("stablehlo.dot_general")) is after


def test_plain_forms_ask_for_no_platform():
    """What exporters to other formats can follow; it computes the same."""
    block = transformer.Block(transformer.BlockConfig(width=16, heads=2))
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    expected, variables = block.init_with_output(jax.random.key(1), x, None, jnp.float32(0.0))

    def apply(x):
        return block.apply(variables, x, None, jnp.float32(0.0))

    with plain_forms():
        program = str(jax.make_jaxpr(apply)(x))
        np.testing.assert_allclose(apply(x), expected, rtol=1e-6, atol=1e-6)
    assert "platform_index" not in program
    assert "custom_vjp" not in program
    assert "platform_index" in str(jax.make_jaxpr(lambda x: apply(x))(x))  # another function: the trace of one is kept


def test_every_product_of_a_bfloat16_block_is_one_of_bfloat16():
    """Backward as well: a float32 cotangent would make the largest products float32's, at half the rate or less."""
    block = transformer.Block(transformer.BlockConfig(width=16, heads=2, dtype=jnp.bfloat16))
    x, context = (jnp.zeros((2, n, 16), jnp.bfloat16) for n in (5, 7))

    def loss(params):
        return jnp.sum(block.apply(params, x, jnp.ones((2, 5), bool), jnp.float32(0.0), context).astype(jnp.float32))

    with jax.numpy_dtype_promotion("standard"):  # flax's norms promote bf16 with f32
        params = block.init(jax.random.key(0), x, None, jnp.float32(0.0), context)
        flops = analytic_flops.count(jax.make_jaxpr(jax.grad(loss))(params))
    assert set(flops) == {"bf16"}
    assert flops.total() > 0


def test_every_pixel_value_stays_apart_in_bfloat16():
    values = jnp.arange(256, dtype=jnp.uint8)[:, None, None].repeat(3, axis=2)
    found = vit.normalize(values, vit.IMAGENET_MEAN, vit.IMAGENET_STD, jnp.bfloat16)
    exact = vit.normalize(values, vit.IMAGENET_MEAN, vit.IMAGENET_STD, jnp.float32)
    np.testing.assert_array_equal(np.asarray(found, np.float32), np.asarray(exact.astype(jnp.bfloat16), np.float32))
    assert [len(np.unique(np.asarray(found[..., c], np.float32))) for c in range(3)] == [256] * 3


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(prepared):
    model, variables, batch, data = prepared
    half = IRM(dataclasses.replace(model.config, dtype="bfloat16"))
    with jax.numpy_dtype_promotion("standard"):
        own = variables_of(half, half.config.max_length)
    assert {x.dtype for x in jax.tree.leaves(own["params"])} == {jnp.dtype(jnp.float32)}
    constants = jnp.asarray(data.plan.constant_tokens)
    exact = apply(model, variables, batch, constants, train=False)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms promote bf16 with f32
        rounded = apply(half, variables, batch, constants, train=False)
        assert apply(half, variables, constants, method="encode_sentences").tokens.dtype == jnp.bfloat16
    assert rounded.edited.person.dtype == jnp.float32
    np.testing.assert_allclose(rounded.edited.person, exact.edited.person, atol=0.25)
    assert not np.array_equal(rounded.edited.person, exact.edited.person)


def test_base_has_the_papers_sizes():
    """ViT-B/16 and BERT-base by their published parameter counts."""
    config = presets.preset("base", vocab_size=30_522)
    shapes = jax.eval_shape(lambda: variables_of(IRM(config), 70))["params"]
    count = {
        name: sum(int(np.prod(x.shape)) for x in jax.tree.leaves(shapes[name]))
        for name in ("image_encoder", "template_encoder", "text_encoder", "editing_transformer")
    }
    block = 12 * 768 * 768 + 13 * 768  # qkv, output, two MLP layers, their biases, two norms
    patches = 16 * 16 * 3 * 768 + 768
    assert count["image_encoder"] == 12 * block + patches + (2 * 4 + 128) * 768 + 2 * 768
    assert count["template_encoder"] == 12 * block + patches + (2 * 1 + 64) * 768 + 2 * 768
    assert count["text_encoder"] == 6 * block + (30_522 + 70 + 2) * 768 + 2 * 768
    assert count["editing_transformer"] == 2 * block


def test_parameter_tree_does_not_depend_on_the_mix(prepared):
    """Every parameter exists after initialise: a run that adds a task restores the same tree."""
    _, variables, _, _ = prepared
    found = {path_string(path).split("/")[0] for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])}
    assert found == {
        "image_encoder", "text_encoder", "template_encoder", "editing_transformer", "edited_neck", "cls_neck",
        "head_cls", "head_person", "head_guided", "image_projection", "text_projection", "temperature",
    }  # fmt: skip


@pytest.fixture(scope="module")
def fusing(make_micro_config):
    """A model with two layers in which captions read images, two captions and two images' tokens."""
    sizes = presets.from_options(make_micro_config().model.to_dict(), vocab_size=40)
    sizes = dataclasses.replace(sizes, fusion_depth=2)
    model = IRM(sizes)
    tokens = np.zeros((2, sizes.max_length), np.int32)
    tokens[0, :5], tokens[1, :9] = range(2, 7), range(2, 11)
    with few_optimizations():
        variables = variables_of(model, sizes.max_length)
        captions = apply(model, variables, jnp.asarray(tokens), method="encode_captions")
    images = jax.random.normal(jax.random.key(1), (2, 9, sizes.width))
    return model, variables, captions, images


def fuse(fusing, captions, images):
    model, variables, *_ = fusing
    pair = jax.tree.map(lambda x: x[None], (captions, images))
    return model.apply(variables, pair, pair, pair, train=False, method="fuse_captions")


def test_fused_captions_have_the_documented_shapes_and_one_matching_head(fusing):
    model, variables, captions, images = fusing
    found = fuse(fusing, captions, images)
    assert found.matching.shape == (1, 2, 2)
    assert found.words.shape == (1, 2, model.config.max_length, model.config.vocab_size)
    assert found.replaced.shape == (1, 2, model.config.max_length, 2)
    judged = model.apply(variables, captions.tokens, captions.mask, images, method="match")
    pair = jax.tree.map(lambda x: x[None], (captions, images))
    alone = model.apply(variables, pair, None, None, train=False, method="fuse_captions").matching
    np.testing.assert_allclose(judged, alone[0, :, 1] - alone[0, :, 0], atol=1e-6)
    np.testing.assert_allclose(found.matching, alone, rtol=1e-6, atol=1e-6)  # six rows at a time, sums in another order


def test_a_caption_reads_its_own_image_and_its_own_words_only(fusing):
    """Another image changes that caption's output; another image of the other caption, or padding, changes nothing."""
    _, _, captions, images = fusing
    before = fuse(fusing, captions, images).words[0]
    after = fuse(fusing, captions, images.at[1].add(1.0)).words[0]
    np.testing.assert_array_equal(after[0], before[0])
    assert np.abs(np.asarray(after - before)[1]).max() > 1e-3
    padding = ~np.asarray(captions.mask)
    noisy = captions.replace(tokens=jnp.where(jnp.asarray(padding)[..., None], 7.0, captions.tokens))
    changed = np.asarray(fuse(fusing, noisy, images).words[0])
    np.testing.assert_allclose(changed[~padding], np.asarray(before)[~padding], atol=1e-6)


def test_the_word_head_shares_the_word_table(fusing):
    _, variables, captions, images = fusing
    words = fuse(fusing, captions, images).words
    doubled = jax.tree.map(lambda x: x, variables)
    table = variables["params"]["text_encoder"]["word_embedding"]
    doubled["params"]["text_encoder"]["word_embedding"] = table.at[11].multiply(2.0)
    changed = fuse((fusing[0], doubled), captions, images).words
    difference = np.asarray(changed - words)
    assert np.abs(difference[..., 11]).max() > 1e-4
    np.testing.assert_array_equal(np.delete(difference, 11, axis=-1), 0)


def test_captions_are_compared_with_the_class_token_alone(prepared):
    """Which gives the same projection for fewer products."""
    model, variables, _, _ = prepared
    image = jax.random.randint(jax.random.key(1), (2, *model.config.image_size, 3), 0, 255).astype(jnp.uint8)
    whole = jax.jit(lambda v: model.apply(v, image, method=lambda m, x: m.project_images(m.encode_images(x))))
    alone = jax.jit(lambda v: model.apply(v, image, method="encode_and_project_images"))
    np.testing.assert_allclose(alone(variables), whole(variables), rtol=1e-5, atol=1e-6)
    counted = [analytic_flops.count(jax.make_jaxpr(f)(variables)).total() for f in (alone, whole)]
    assert counted[0] < counted[1]
