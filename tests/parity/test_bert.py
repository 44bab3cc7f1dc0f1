"""The text encoder against Hugging Face's `BertModel`."""

import jax.numpy as jnp
import pytest
from parity import check, scramble, torch, tower

from irm_jax.models.instruction_encoder import TextEncoder
from irm_jax.models.transformer import BlockConfig

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize(("width", "heads", "depth"), [(24, 3, 1), (48, 6, 6)])
def test_every_layer_equals_bert(converted, width, heads, depth):
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=3 * width + 1, max_position_embeddings=12, attn_implementation="eager",
    )  # fmt: skip
    bert = scramble(transformers.BertModel(config))
    _, arrays = converted("bert", bert.state_dict(), heads=heads)
    tokens = torch.randint(1, 50, (4, 9))
    tokens[1, 5:] = tokens[3, 2:] = 0
    mask = (tokens != 0).long()
    theirs = bert(tokens, attention_mask=mask, output_hidden_states=True).hidden_states
    params = tower(arrays, "text_encoder")
    ratio = (3 * width + 1.5) / width
    for used in range(depth + 1):  # block before whole: the model of the first layers only
        part = {**params, "blocks": {k: v for k, v in params["blocks"].items() if int(k[6:]) < used}}
        block = BlockConfig(width=width, heads=heads, mlp_ratio=ratio, norm_first=False, layer_norm_eps=1e-12)
        ours = TextEncoder(block, used, 50, 12).apply(
            {"params": part}, jnp.asarray(tokens.numpy(), jnp.int32), train=False
        )
        check("BERT hidden states", ours.tokens, theirs[used])
