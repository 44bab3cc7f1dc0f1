"""Editing transformer, necks, losses, gradients and optimizer against torch (benchmarks/torch_irm.py).

That model is named as the released one, so that its weights, and its gradients, come here through the converter.
"""

import copy
import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import check, scramble, torch

from data_pipelines import tasks
from irm_jax.losses.instruction_similarity import init_mean
from irm_jax.models import presets
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.irm import IRM, initialise
from irm_jax.training import optimizer
from irm_jax.training.optimizer import OptimizerOptions

pytest.importorskip("timm", reason="parity tests need timm: pip install -e '.[dev,parity]'")
torch_irm = importlib.import_module("benchmarks.torch_irm")  # what is wrong with it is an error, not a skip

CONFIG = presets.preset(
    "small", width=24, image_size=(32, 16), image_depth=2, image_heads=3, patch=8, stride=8, part_tokens=3,
    text_depth=2, text_heads=3, max_length=12, instruction_image_size=(16, 16), template_depth=1, template_heads=3,
    template_patch=8, projection_width=8, mlp_ratio=2.0, drop_path=0.0, editing_drop_path=0.0, vocab_size=40,
    num_identities=6, mask_instruction_padding=False,
)  # fmt: skip
SIZES = torch_irm.Sizes(
    width=24, heads=3, mlp_ratio=2.0, image_size=(32, 16), image_depth=2, patch=8, text_depth=2, max_length=12,
    vocabulary=40, identities=6,
)  # fmt: skip
ROWS, ALPHA, MARGIN = 8, 3.0, 0.3


@pytest.fixture(scope="module")
def pair():
    """The torch model, and ours with the same weights (0 where torch has none)."""
    torch.manual_seed(0)
    theirs = scramble(torch_irm.Model(SIZES, attention="eager"))
    with torch.no_grad():
        for neck in (theirs.feat_bn, theirs.fusion_feat_bn):
            neck.bias.zero_()
    model = IRM(CONFIG)
    key, words = jax.random.key(0), jnp.ones((1, 12), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(key, words, method=initialise))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params, stats = (flatten_dict(variables[part], sep="/") for part in ("params", "batch_stats"))
    converted = torch_irm.our_arrays(theirs.state_dict(), SIZES)
    assert {p for p in params if p not in converted and not p.startswith("template_encoder")} == {
        "image_projection/kernel", "image_projection/bias", "text_projection/kernel", "text_projection/bias",
        "temperature",
    }  # fmt: skip
    params |= {path: array for path, array in converted.items() if not path.startswith("batch_stats/")}
    stats |= {p.removeprefix("batch_stats/"): a for p, a in converted.items() if p.startswith("batch_stats/")}
    return theirs, model, {"params": unflatten_dict(params, sep="/"), "batch_stats": unflatten_dict(stats, sep="/")}


def rows():
    """Eight rows of three people: images, sentences (two are the constant one, two are alike) and identities."""
    rng = np.random.default_rng(1)
    sentences = np.zeros((ROWS, 12), np.int32)
    for row, length in enumerate((5, 8, 12, 3, 8, 6, 5, 10)):
        sentences[row, :length] = rng.integers(1, 40, length)
    sentences[4], sentences[6] = sentences[1], sentences[0]
    image = rng.integers(0, 256, (ROWS, 32, 16, 3), dtype=np.uint8)
    return image, sentences, np.array([0, 0, 0, 3, 3, 3, 5, 5], np.int32)


def test_editing_transformer_and_necks(pair):
    theirs, _, variables = pair
    cls, patches, tokens = torch.randn(ROWS, 24), torch.randn(ROWS, 8, 24), torch.randn(ROWS, 12, 24)
    hidden = torch.arange(12)[None] < torch.tensor([12, 3, 5, 9, 12, 1, 7, 2])[:, None]
    arrays = [jnp.asarray(x.numpy()) for x in (cls, patches, tokens, hidden)]
    every = jnp.ones(hidden.shape, bool)
    for masked in (False, True):
        with torch.no_grad():
            edited = theirs.edit(cls, patches, tokens, hidden if masked else None)
            necks = [theirs.fusion_feat_bn(x) for x in edited]
        own = IRM(dataclasses.replace(CONFIG, mask_instruction_padding=masked))

        def both(m, cls, patches, tokens, mask):
            instruction = Instruction(tokens, mask, every, tokens[:, 0])
            found = m.editing_transformer(cls, patches, instruction, train=False)
            return found, m.edited_neck(*found, use_running_average=True)

        found, necked = own.apply(variables, *arrays, method=both)
        for one, other in zip((*found, *necked), (*edited, *necks), strict=True):
            check("editing transformer, necks", one, other)


def loss_of(model, image, sentences, identity):
    """Our L_IRM of the rows as one block of a joint batch: sentence 0 is a constant, the others the block's table."""
    table = sorted({tuple(s) for s in sentences.tolist()} - {tuple(sentences[0])})
    slot = np.array([table.index(tuple(s)) if tuple(s) in table else -1 for s in sentences.tolist()], np.int32)
    blank, none = np.zeros((1, ROWS), np.int32), np.zeros((1, 0), np.int32)
    group = {
        "image": image[None], "instruction": slot[None], "table": np.array(table, np.int32)[None],
        "identity": identity[None], "dataset": blank, "task": blank + tasks.task("li").id, "attributes": blank,
        "valid": np.ones((1, ROWS), bool), "instruction_key": slot[None], "composed_row": none,
    }  # fmt: skip
    batch = {"text": {name: jnp.asarray(array) for name, array in group.items()}}
    objective = torch_irm.our_objective(tasks.task("li"), SIZES, alpha=ALPHA, margin=MARGIN)

    def loss(params, stats):
        output, changed = model.apply(
            {"params": params, "batch_stats": stats}, batch, jnp.asarray(sentences[:1]), train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        return objective.of_rows(output.edited, output.heads, batch, init_mean(2, 24))[0], changed

    return jax.value_and_grad(loss, has_aux=True)


def gradients(pair, double):
    """Value, gradients by our paths, and running mean of the cls neck: (ours, torch's), both in f32 or both in f64."""
    theirs, model, variables = pair
    image, sentences, identity = rows()
    kind = jnp.float64 if double else jnp.float32
    with jax.enable_x64(double):
        model = IRM(dataclasses.replace(CONFIG, dtype=kind.__name__))
        own = jax.tree.map(lambda x: jnp.asarray(x, kind), variables)
        function = jax.jit(loss_of(model, image, sentences, identity))
        with jax.numpy_dtype_promotion("standard"):  # flax's norms meet f64 with f32
            (value, changed), gradient = jax.device_get(function(own["params"], own["batch_stats"]))
    theirs = copy.deepcopy(theirs).train()
    theirs = theirs.double() if double else theirs
    images = torch.tensor(image).to(theirs.visual_encoder.pos_embed.dtype)
    words, people = (torch.tensor(x).long() for x in (sentences, identity))
    loss = theirs.loss(images, words, people, alpha=ALPHA, margin=MARGIN)
    loss.backward()
    named = {name: p.grad for name, p in theirs.named_parameters() if not name.endswith("_bn.bias")}
    mean = changed["batch_stats"]["cls_neck"]["mean"]
    return (value, flatten_dict(gradient, sep="/"), mean), (
        loss,
        torch_irm.our_arrays(named, SIZES),
        theirs.feat_bn.running_mean,
    )


@pytest.mark.usefixtures("quick_programs")
@pytest.mark.parametrize("double", [False, True])
def test_loss_gradients_and_statistics(pair, double):
    """In f64 each array's gradient by its own size; in f32, where rounding of eight rows' BatchNorm is as large as some
    arrays' gradients, by the size of the largest one. (No gradient at all: the bias of keys, which softmax cancels.)"""
    (value, found, mean), (loss, expected, their_mean) = gradients(pair, double)
    precision = "f64" if double else "f32"
    check(f"L_IRM, {precision}", value, loss)
    check(f"running mean of the cls neck, {precision}", mean, their_mean)
    assert {path for path, leaf in found.items() if path not in expected and np.any(leaf)} == set()
    largest = max(float(np.abs(leaf).max()) for leaf in expected.values())
    for path, leaf in expected.items():
        scale = max(float(np.abs(leaf).max()), 1e-3 * largest) if double else largest
        check(f"gradients of L_IRM, {precision}", found[path], leaf, scale=scale)


def test_two_steps_of_the_optimizer(pair):
    """From the same gradients: random ones, since Adam's first step turns rounding of tiny ones into whole steps."""
    theirs = copy.deepcopy(pair[0])
    for parameter in theirs.parameters():
        parameter.grad = torch.randn_like(parameter)
    gradients = {n: p.grad for n, p in theirs.named_parameters() if not n.endswith("_bn.bias")}
    expected = torch_irm.our_arrays(gradients, SIZES)
    steps, warmup, rate, decay = 10, 3, 1e-2, 5e-4
    own = optimizer.make_optimizer(
        OptimizerOptions(learning_rate=rate, steps=steps, warmup_steps=warmup, weight_decay=decay)
    )
    tensors = {path: jnp.asarray(torch_irm.our_arrays(theirs.state_dict(), SIZES)[path]) for path in expected}
    state = own.init(tensors)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=decay)
    for step in range(2):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = own.update({p: jnp.asarray(g) for p, g in expected.items()}, state, tensors)
        tensors = optax.apply_updates(tensors, updates)
        adamw.param_groups[0]["lr"] = float(optimizer.schedule(rate, steps, warmup)(step))
        adamw.step()
    for path, leaf in torch_irm.our_arrays(theirs.state_dict(), SIZES).items():
        if path in expected:
            check("parameters after two steps", tensors[path], leaf)
