"""The networks: shapes, options that must not change the result, and that a repeated sentence is encoded once."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quick_compilation import few_optimizations

from data_pipelines.batches.prefetch import ReadAhead
from irm_jax import run
from irm_jax.compile import analytic_flops
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise
from irm_jax.parallel.rules import path_string

pytestmark = pytest.mark.usefixtures("quick_programs")


def variables_of(model, length):
    return jax.jit(lambda key: model.init(key, jnp.ones((1, length), jnp.int32), method=initialise))(jax.random.key(0))


@functools.cache
def program(model, **options):
    """`model.apply` as one program, compiled once per shape; operation by operation it takes much longer."""
    return jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, **options))


def apply(model, variables, *arrays, **options):
    """As one program that is not kept."""
    return jax.jit(lambda variables, *arrays: model.apply(variables, *arrays, **options))(variables, *arrays)


def images_for(model, number=1):
    shape = (2, *model.config.image_size, 3)
    return jax.random.randint(jax.random.key(number), shape, 0, 255).astype(jnp.uint8)


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
    output = program(model, train=False)(variables, batch, constants)

    def alone(m, image, tokens):
        return m.embed(m.encode_images(image), m.encode_sentences(tokens))

    group, embed = batch["text"], program(model, method=alone)
    for row in range(group["image"].shape[1]):
        index = int(group["instruction"][3, row])
        tokens = constants[-1 - index] if index < 0 else group["table"][3, index]
        single = embed(variables, group["image"][3, row][None], tokens[None])
        np.testing.assert_allclose(single.person[0], output.edited.person[3, row], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(single.guided[0], output.edited.guided[3, row], rtol=1e-4, atol=1e-4)


def test_padding_of_a_sentence_changes_nothing_unless_asked(prepared):
    model, variables, _, _ = prepared
    tokens = jnp.array([[2, 7, 8, 3], [2, 9, 10, 3]], jnp.int32)
    longer = jnp.pad(tokens, ((0, 0), (0, 20)))

    def embeddings(m, image):
        features = m.encode_images(image)
        return [m.embed(features, m.encode_sentences(t)).embedding for t in (tokens, longer)]

    short, long = apply(model, variables, images_for(model), method=embeddings)
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)
    released = IRM(dataclasses.replace(model.config, mask_instruction_padding=False))
    short, long = apply(released, variables, images_for(model), method=embeddings)
    assert np.abs(np.asarray(short - long)).max() > 1e-3


def test_what_pads_a_template_is_never_attended_to(prepared):
    """Zero tokens that bring templates to the length of sentences are nobody's padding, released or not."""
    model, variables, _, _ = prepared
    released = IRM(dataclasses.replace(model.config, mask_instruction_padding=False))
    template = jax.random.randint(jax.random.key(2), (2, *model.config.instruction_image_size, 3), 0, 255)

    def embeddings(m, image):
        features = m.encode_images(image)
        templates = [m.encode_templates(template.astype(jnp.uint8), length) for length in (17, 40)]
        return [m.embed(features, one).embedding for one in templates]

    short, long = apply(released, variables, images_for(model), method=embeddings)
    np.testing.assert_allclose(short, long, rtol=1e-5, atol=1e-5)


def test_a_model_without_identities_still_has_heads_of_a_size(micro_config):
    assert run.model_config(micro_config, num_identities=0).num_identities == 64


def test_the_editing_transformer_reads_as_many_tokens_of_a_sentence_as_it_is_told(prepared):
    """Fewer than the sentence has: its last tokens are left out. As many as it has: nothing changes."""
    model, variables, _, _ = prepared
    assert model.config.instruction_tokens == 24
    sentence = jnp.zeros((2, 40), jnp.int32).at[:, :20].set(jax.random.randint(jax.random.key(3), (2, 20), 5, 40))

    def both(m, image):
        instruction = m.encode_sentences(sentence)
        return m.embed(m.encode_images(image), instruction).embedding, instruction

    models = {count: IRM(dataclasses.replace(model.config, instruction_tokens=count)) for count in (None, 24, 18)}
    found = jax.jit(lambda v, image: {str(n): own.apply(v, image, method=both) for n, own in models.items()})(
        variables, images_for(model)
    )
    (whole, read), (short, as_many), (cut, fewer) = (found[str(count)] for count in models)
    assert read.tokens.shape[1] == 40
    assert as_many.tokens.shape[1] == as_many.mask.shape[1] == 24
    np.testing.assert_allclose(short, whole, rtol=1e-5, atol=1e-5)
    assert fewer.tokens.shape[1] == 18
    assert np.abs(np.asarray(cut - whole)).max() > 1e-3


def test_bfloat16_computes_in_bfloat16_with_float32_parameters(prepared):
    model, variables, batch, data = prepared
    half = IRM(dataclasses.replace(model.config, dtype="bfloat16"))
    with jax.numpy_dtype_promotion("standard"):
        own = jax.eval_shape(lambda: variables_of(half, half.config.max_length))
    assert {x.dtype for x in jax.tree.leaves(own["params"])} == {jnp.dtype(jnp.float32)}
    constants = jnp.asarray(data.plan.constant_tokens)
    exact = program(model, train=False)(variables, batch, constants)
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
    return program(model, train=False, method="fuse_captions")(variables, pair, pair, pair)


def test_fused_captions_have_the_documented_shapes_and_one_matching_head(fusing):
    model, variables, captions, images = fusing
    found = fuse(fusing, captions, images)
    assert found.matching.shape == (1, 2, 2)
    assert found.words.shape == (1, 2, model.config.max_length, model.config.vocab_size)
    assert found.replaced.shape == (1, 2, model.config.max_length, 2)
    judged = apply(model, variables, captions.tokens, captions.mask, images, method="match")
    pair = jax.tree.map(lambda x: x[None], (captions, images))
    alone = apply(model, variables, pair, None, None, train=False, method="fuse_captions").matching
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
    image = images_for(model)

    def whole(variables):
        return apply(model, variables, image, method=lambda m, x: m.project_images(m.encode_images(x)))

    def alone(variables):
        return apply(model, variables, image, method="encode_and_project_images")

    np.testing.assert_allclose(alone(variables), whole(variables), rtol=1e-5, atol=1e-6)
    counted = [analytic_flops.count(jax.make_jaxpr(f)(variables)).total() for f in (alone, whole)]
    assert counted[0] < counted[1]
