"""The layers in which captions read images, and the heads on them, against Hugging Face's BERT with cross-attention.

Hugging Face builds cross-attention for decoders only, with a causal mask; ALBEF's layers look both ways. So its layers
are called one by one with the mask given: padding is hidden, what follows is not.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from parity import check, scramble, torch, tower

from irm_jax.convert.warm_start import Sources, warm_start
from irm_jax.models import presets, transformer
from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD
from irm_jax.models.irm import IRM, image_tokens, initialise

timm_vit = pytest.importorskip("timm.models.vision_transformer")
transformers = pytest.importorskip("transformers")
nn = torch.nn

TEXT, FUSION, ROWS, LENGTH, WORDS = 2, 3, 4, 9, 50
CONFIG = presets.preset(
    "small", width=24, image_size=(32, 32), image_depth=2, image_heads=3, patch=8, stride=8, part_tokens=0,
    text_depth=TEXT, text_heads=3, max_length=12, instruction_image_size=(16, 16), template_depth=1, template_heads=3,
    template_patch=8, projection_width=8, mlp_ratio=3.0, vocab_size=64, num_identities=6, fusion_depth=FUSION,
)  # fmt: skip


class Albef(nn.Module):
    """ALBEF's parts by its names; RaSa's head of replaced words beside them."""

    def __init__(self):
        super().__init__()
        words = transformers.BertConfig(
            vocab_size=WORDS, hidden_size=24, num_hidden_layers=TEXT + FUSION, num_attention_heads=3,
            intermediate_size=72, max_position_embeddings=12, is_decoder=True, add_cross_attention=True,
            attn_implementation="eager",
        )  # fmt: skip
        self.text_encoder = transformers.BertForMaskedLM(words)
        for layer in self.text_encoder.bert.encoder.layer[:TEXT]:
            del layer.crossattention
        self.visual_encoder = timm_vit.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=3, num_classes=0
        )
        self.vision_proj, self.text_proj = nn.Linear(24, 8), nn.Linear(24, 8)
        self.itm_head, self.mrtd_head = nn.Linear(24, 2), nn.Linear(24, 2)
        self.temp = nn.Parameter(torch.tensor(0.07))

    def layers(self, tokens, images):
        """Hidden states after the embeddings and after each layer; `images` are read from layer TEXT on."""
        x = self.text_encoder.bert.embeddings(input_ids=tokens)
        hidden = torch.where(tokens == 0, torch.finfo(torch.float32).min, 0.0)[:, None, None]
        found = [x]
        for number, layer in enumerate(self.text_encoder.bert.encoder.layer):
            context = {"encoder_hidden_states": images} if number >= TEXT else {}
            x = layer(x, attention_mask=hidden, **context)
            found.append(x)
        return found


def sentences():
    tokens = torch.randint(1, WORDS, (ROWS, LENGTH))
    tokens[1, 5:] = tokens[3, 2:] = 0
    return tokens


@pytest.fixture
def pair(converted):
    theirs = scramble(Albef())
    _, arrays = converted("albef", theirs.state_dict(), heads=3)
    return theirs, arrays


def test_every_layer_that_reads_images(pair):
    """Block before whole: the first layer alone, two, all three."""
    theirs, arrays = pair
    tokens, images = sentences(), torch.randn(ROWS, 17, 24)
    hidden = theirs.layers(tokens, images)
    params = tower(arrays, "fusion_encoder")
    block = transformer.BlockConfig(width=24, heads=3, mlp_ratio=3.0, norm_first=False, layer_norm_eps=1e-12)
    x, mask = jnp.asarray(hidden[TEXT].detach().numpy()), jnp.asarray((tokens != 0).numpy())
    for used in range(1, FUSION + 1):
        part = {name: layer for name, layer in params.items() if int(name[6:]) < used}
        stack = transformer.Stack(block, used)
        ours = stack.apply({"params": part}, x, mask, jnp.asarray(images.numpy()), deterministic=True)
        check("BERT layers with cross-attention", ours, hidden[TEXT + used])
    # What a word may not see: the words after it are no secret here, padding and other images are.
    assert not torch.allclose(theirs.layers(tokens, images.flip(0))[-1], hidden[-1])


def test_heads_and_projections_from_pictures_and_words_on(pair, tmp_path):
    theirs, _ = pair
    model = IRM(CONFIG)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones((1, 12), jnp.int32), method=initialise))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    source = str(tmp_path / "converted")
    variables = warm_start(zeros, CONFIG, Sources(image_encoder=source, text_encoder=source))

    tokens = sentences()
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    mean, std = (np.array(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        image = theirs.visual_encoder.forward_features(
            torch.tensor((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2)
        )
        hidden = theirs.layers(tokens, image)
        last = hidden[-1]
        logits = theirs.itm_head(last[:, 0])
        words, replaced = theirs.text_encoder.cls(last), theirs.mrtd_head(last)
        projected = theirs.vision_proj(image[:, 0]), theirs.text_proj(hidden[TEXT][:, 0])

    def ours(m, image, tokens):
        features, caption = m.encode_images(image), m.encode_captions(tokens)
        given = jax.tree.map(lambda x: x[None], (caption, image_tokens(features)))
        fused = m.fuse_captions(given, given, given, train=False)
        matched = m.match(caption.tokens, caption.mask, image_tokens(features))
        return fused, matched, (m.project_images(features), m.project_sentences(caption))

    fused, matched, projections = jax.jit(lambda i, t: model.apply(variables, i, t, method=ours))(
        jnp.asarray(pixels), jnp.asarray(tokens.numpy(), jnp.int32)
    )
    check("matching head", fused.matching[0], logits)
    check("matching head", matched, logits[:, 1] - logits[:, 0])
    check("head of hidden words", fused.words[0, ..., :WORDS], words)
    assert not np.any(np.asarray(fused.words[0, ..., WORDS:]))  # padding of the table: nothing was there
    check("head of replaced words", fused.replaced[0], replaced)
    for one, other in zip(projections, projected, strict=True):
        check("projections of images and captions", one, other)
    assert float(variables["params"]["temperature"]) == theirs.temp.item()


def test_a_plain_bert_with_its_head(converted):
    """Layers after the model's text layers, without images to read, and the head of hidden words, from BERT itself."""
    config = transformers.BertConfig(
        vocab_size=WORDS, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=72,
        max_position_embeddings=12, attn_implementation="eager",
    )  # fmt: skip
    bert = scramble(transformers.BertForMaskedLM(config))
    _, arrays = converted("bert", bert.state_dict(), heads=3)
    tokens = sentences()
    theirs = bert(tokens, attention_mask=(tokens != 0).long())
    model = IRM(dataclasses.replace(CONFIG, vocab_size=WORDS))
    text = {path: array for path, array in arrays.items() if path.startswith(("text_encoder/", "word_head/"))}
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), jnp.ones((1, 12), jnp.int32), method=initialise)
    )["params"]  # fmt: skip
    params = {p: np.zeros(x.shape, x.dtype) for p, x in flatten_dict(shapes, sep="/").items()} | text

    def ours(m, tokens):
        return m.word_head(m.encode_captions(tokens).tokens, m.text_encoder.word_table())

    logits = model.apply(
        {"params": unflatten_dict(params, sep="/")}, jnp.asarray(tokens.numpy(), jnp.int32), method=ours
    )  # fmt: skip
    check("head of hidden words", logits, theirs.logits)
