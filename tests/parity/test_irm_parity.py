"""Editing transformer, necks, losses, gradients and optimizer against short torch transcriptions of method.md.

The torch model is named as the released one, so that its weights, and its gradients, come here through the converter.
"""

import copy
import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import check, scramble, torch

from data_pipelines import tasks
from irm_jax import optimizer
from irm_jax.convert import bert, irm_release, pass_vit
from irm_jax.convert.rules import take
from irm_jax.loss_options import CaptionOptions, LossOptions
from irm_jax.losses.instruction_similarity import init_mean
from irm_jax.losses.words import Vocabulary
from irm_jax.models import presets
from irm_jax.models.instruction_encoder import Instruction
from irm_jax.models.irm import IRM, initialise
from irm_jax.train_step import edited_loss

timm_vit = pytest.importorskip("timm.models.vision_transformer")
transformers = pytest.importorskip("transformers")
nn = torch.nn

CONFIG = presets.preset(
    "small", width=24, image_size=(32, 16), image_depth=2, image_heads=3, patch=8, stride=8, part_tokens=3,
    text_depth=2, text_heads=3, max_length=12, instruction_image_size=(16, 16), template_depth=1, template_heads=3,
    template_patch=8, projection_width=8, mlp_ratio=2.0, drop_path=0.0, editing_drop_path=0.0, vocab_size=40,
    num_identities=6, mask_instruction_padding=False,
)  # fmt: skip
NO_CAPTIONS = CaptionOptions(
    contrastive_weight=0.0, matching_weight=0.0, masked_weight=0.0, replaced_weight=0.0, queue=False, soft_weight=0.0,
    soft_ramp_steps=1, masked_probability=0.0, replaced_probability=0.0, release_mlm_axis=False, release_mask_sep=False,
    vocabulary=Vocabulary(40, 0, 1, 2, 3),
)  # fmt: skip
ROWS, ALPHA, MARGIN = 8, 3.0, 0.3
MEAN, STD = (torch.tensor(x) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))


class Image(nn.Module):
    """Method section 2: [cls, parts, patches] with positions, pre-norm blocks, final norm."""

    def __init__(self):
        super().__init__()
        for i in ("cls", 1, 2, 3):
            token, position = ("cls_token", "cls_pos") if i == "cls" else (f"part_token{i}", f"part{i}_pos")
            setattr(self, token, nn.Parameter(torch.randn(1, 1, 24)))
            setattr(self, position, nn.Parameter(torch.randn(1, 1, 24)))
        self.pos_embed = nn.Parameter(torch.randn(1, 8, 24))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, 24, 8, 8)})
        self.blocks = nn.ModuleList(block() for _ in range(2))
        self.norm = nn.LayerNorm(24, eps=1e-6)

    def forward(self, image):
        mean, std = MEAN.to(self.pos_embed.dtype), STD.to(self.pos_embed.dtype)
        x = self.patch_embed["proj"](((image / 255 - mean) / std).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)
        parts = [getattr(self, f"part_token{i}") + getattr(self, f"part{i}_pos") for i in (1, 2, 3)]
        special = torch.cat([self.cls_token + self.cls_pos, *parts], 1).expand(len(x), -1, -1)
        x = torch.cat([special, x + self.pos_embed], 1)
        for layer in self.blocks:
            x = layer(x)
        x = self.norm(x)
        return x[:, 0], x[:, 4:]


class Model(nn.Module):
    """Method sections 2 to 5 for rows with sentences."""

    def __init__(self):
        super().__init__()
        self.visual_encoder = Image()
        words = transformers.BertConfig(
            vocab_size=40, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48,
            max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        )  # fmt: skip
        self.text_encoder = nn.ModuleDict({"bert": transformers.BertModel(words, add_pooling_layer=False)})
        # Hugging Face's row of [PAD] never learns; ours does, where padding is attended to.
        self.text_encoder["bert"].embeddings.word_embeddings.padding_idx = None
        self.fusion = nn.ModuleList(block() for _ in range(2))
        self.feat_bn, self.fusion_feat_bn = nn.BatchNorm1d(24), nn.BatchNorm1d(24)
        for name in ("classifier", "classifier_f", "classifier_c"):
            setattr(self, name, nn.Linear(24, 6, bias=False))

    def edit(self, cls, patches, tokens, mask=None):
        """Section 4: both streams through the same blocks; token 0 of each."""
        person, guided = torch.cat([cls[:, None], tokens[:, 1:]], 1), torch.cat([tokens[:, :1], patches], 1)
        if mask is not None:
            mask = torch.cat([torch.ones_like(mask[:, :1]), mask[:, 1:]], 1)[:, None, None]
        for layer in self.fusion:
            person, guided = layer(person, attn_mask=mask), layer(guided)
        return person[:, 0], guided[:, 0]

    def forward(self, image, sentences):
        cls, patches = self.visual_encoder(image)
        tokens = self.text_encoder["bert"](sentences, attention_mask=(sentences != 0).long()).last_hidden_state
        person, guided = self.edit(cls, patches, tokens)
        return cls, self.feat_bn(cls), self.fusion_feat_bn(person), self.fusion_feat_bn(guided), tokens[:, 0]

    def loss(self, image, sentences, identity):
        """L_IRM of section 5."""
        cls, cls_neck, person, guided, feature = self(image, sentences)
        unit = nn.functional.normalize(feature.detach())
        rho = torch.where((sentences[:, None] == sentences[None]).all(2), 1.0, unit @ unit.T)
        ce = nn.functional.cross_entropy
        identities = 0.5 * (ce(self.classifier_f(person), identity) + ce(self.classifier_c(guided), identity))
        identities = identities + ce(self.classifier(cls_neck), identity)
        triplets = 0.5 * (triplet(person, identity, rho) + triplet(guided, identity, rho)) + triplet(cls, identity, rho)
        return identities + ALPHA * triplets


def block():
    return timm_vit.Block(24, 3, mlp_ratio=2.0, qkv_bias=True, norm_layer=partial(nn.LayerNorm, eps=1e-6))


def triplet(features, identity, rho):
    """Section 5, one anchor after the other."""
    total = 0.0
    for i in range(len(features)):
        distance = ((features[i] - features) ** 2).sum(1).clamp(min=1e-12).sqrt()
        same = (identity == identity[i]).nonzero()[:, 0]
        first, second = same[distance[same].argsort(descending=True, stable=True)[:2]]
        nearest = torch.where(identity == identity[i], torch.inf, distance).argmin()
        beta, other = rho[i, first], rho[i, second]
        total = total + (distance[first] - distance[nearest] + MARGIN * beta).relu()
        if beta > other:
            total = total + 0.1 * (distance[first] - distance[second] + MARGIN * (beta - other)).relu()
        elif beta < other:
            total = total + 0.1 * (distance[second] - distance[first] + MARGIN * (other - beta)).relu()
    return total / len(features)


def ours(tensors):
    """Tensors by their released names -> arrays by our paths, as the converter lays them out."""
    tensors = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
    image, text = {"width": 24, "heads": 3, "grid": (4, 2)}, {"width": 24, "heads": 3}
    found = {}
    for rules, prefix, tower in (
        (pass_vit.RULES, "visual_encoder.", "image_encoder/"), (bert.RULES, "text_encoder.bert.", "text_encoder/"),
        (irm_release.EDITING, "", "editing_transformer/"), (irm_release.REST, "", ""),
    ):  # fmt: skip
        found |= take(rules, tensors, image if tower != "text_encoder/" else text, prefix=prefix, tower=tower)[0]
    return found


@pytest.fixture(scope="module")
def pair():
    """The torch model, and ours with the same weights (0 where torch has none)."""
    torch.manual_seed(0)
    theirs = scramble(Model())
    with torch.no_grad():
        for neck in (theirs.feat_bn, theirs.fusion_feat_bn):
            neck.bias.zero_()
    model = IRM(CONFIG)
    key, words = jax.random.key(0), jnp.ones((1, 12), jnp.int32)
    shapes = jax.eval_shape(lambda: model.init(key, words, method=initialise))
    variables = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    params, stats = (flatten_dict(variables[part], sep="/") for part in ("params", "batch_stats"))
    converted = ours(theirs.state_dict())
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
    options = LossOptions(
        tasks=(tasks.task("li"),), composed_tasks=(), data_set_weight=(1.0,), alpha=ALPHA, triplet_unit="feature",
        margin=MARGIN, rank_weight=0.1, instruction_similarity="raw", instruction_mean_momentum=0.99, momentum=0.0,
        composed_weight=1.0, captions=NO_CAPTIONS,
    )  # fmt: skip

    def loss(params, stats):
        output, changed = model.apply(
            {"params": params, "batch_stats": stats}, batch, jnp.asarray(sentences[:1]), train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)},
        )  # fmt: skip
        members = jnp.ones((1, CONFIG.num_identities), bool)
        return edited_loss(output.edited, output.heads, batch, init_mean(2, 24), options, members)[0], changed

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
    loss = theirs.loss(images, torch.tensor(sentences).long(), torch.tensor(identity).long())
    loss.backward()
    named = {name: p.grad for name, p in theirs.named_parameters() if not name.endswith("_bn.bias")}
    mean = changed["batch_stats"]["cls_neck"]["mean"]
    return (value, flatten_dict(gradient, sep="/"), mean), (loss, ours(named), theirs.feat_bn.running_mean)


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
    expected = ours({n: p.grad for n, p in theirs.named_parameters() if not n.endswith("_bn.bias")})
    steps, warmup, rate, decay = 10, 3, 1e-2, 5e-4
    own = optimizer.make_optimizer(
        learning_rate=rate, steps=steps, warmup_steps=warmup, weight_decay=decay, no_decay="", beta1=0.9, beta2=0.999,
        clip_norm=0.0,
    )  # fmt: skip
    tensors = {path: jnp.asarray(ours(theirs.state_dict())[path]) for path in expected}
    state = own.init(tensors)
    adamw = torch.optim.AdamW(theirs.parameters(), lr=rate, betas=(0.9, 0.999), weight_decay=decay)
    for step in range(2):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = own.update({p: jnp.asarray(g) for p, g in expected.items()}, state, tensors)
        tensors = optax.apply_updates(tensors, updates)
        adamw.param_groups[0]["lr"] = float(optimizer.schedule(rate, steps, warmup)(step))
        adamw.step()
    for path, leaf in ours(theirs.state_dict()).items():
        if path in expected:
            check("parameters after two steps", tensors[path], leaf)
