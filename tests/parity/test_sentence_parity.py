"""Sentences as the released code reads them: cleaning, word pieces, special tokens, text encoder.

Source: `pre_caption` (dataset/utils.py) and `build_inputs_with_special_tokens` (models/tokenization_bert.py) of ALBEF,
which RaSa and the released IRM copied (docs/parity.md, "Sentences").
"""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from parity import check, scramble, torch, tower

from data_pipelines.instructions.tokenizer import Tokenizer
from data_pipelines.procedural import vocabulary
from irm_jax.models.instruction_encoder import TextEncoder
from irm_jax.models.transformer import BlockConfig

transformers = pytest.importorskip("transformers")
LENGTH, WIDTH, DEPTH = 24, 24, 2
SENTENCES = [
    "do not change clothes",
    "Ignore clothes.",
    "a T-shirt/top,  and   (black) shoes!",
    "the man's hat; it is: 'red' & \"blue\" ~ #1 *",
    "<person> in a café with a naïve Ärmel",
    "red \u5e3d hat and a \U0001f642 bag",
    "qwertyzz blouses 1234567890",
    "hat",
    "wearing " * 60,
    "\u00a0a\ttall   person\n",
]
"""Short, punctuated, cut, of unknown words, ideographs, emoji, accents, spaces of every kind."""


def pre_caption(caption: str, max_words: int = 50) -> str:
    """As the released code has it."""
    caption = re.sub(r"([,.'!?\"()*#:;~])", "", caption.lower())
    caption = caption.replace("-", " ").replace("/", " ").replace("<person>", "person")
    caption = re.sub(r"\s{2,}", " ", caption).rstrip("\n").strip(" ")
    words = caption.split(" ")
    return " ".join(words[:max_words]) if len(words) > max_words else caption


def test_released_sentences_from_the_text_to_the_feature(converted, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary.entries()) + "\n")
    pieces = transformers.BertTokenizerFast.from_pretrained(tmp_path)
    theirs = [
        [pieces.cls_token_id, *pieces(pre_caption(sentence), add_special_tokens=False)["input_ids"]][:LENGTH]
        for sentence in SENTENCES
    ]
    tokens = torch.tensor([[*ids, *[0] * (LENGTH - len(ids))] for ids in theirs])
    ours = Tokenizer(tmp_path, LENGTH, sep=False)
    np.testing.assert_array_equal(ours.encode(SENTENCES), tokens.numpy())
    assert (tokens == ours.unk_id).any()
    assert (tokens[:, -1] != 0).any()

    config = transformers.BertConfig(
        vocab_size=ours.vocab_size, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=3,
        intermediate_size=4 * WIDTH, max_position_embeddings=LENGTH, attn_implementation="eager",
    )  # fmt: skip
    bert = scramble(transformers.BertModel(config))
    _, arrays = converted("bert", bert.state_dict(), heads=3)
    block = BlockConfig(width=WIDTH, heads=3, mlp_ratio=4.0, norm_first=False, layer_norm_eps=1e-12)
    encoder = TextEncoder(block, DEPTH, ours.vocab_size, LENGTH)

    def feature(tokenizer: Tokenizer) -> np.ndarray:
        ids = jnp.asarray(tokenizer.encode(SENTENCES))
        return np.asarray(encoder.apply({"params": tower(arrays, "text_encoder")}, ids, train=False).tokens)[:, 0]

    expected = bert(tokens, attention_mask=(tokens != 0).long()).last_hidden_state[:, 0]
    check("feature of released sentences", feature(ours), expected)
    closed = feature(Tokenizer(tmp_path, LENGTH)) - expected.detach().numpy()
    assert np.linalg.norm(closed[0]) > 0.01  # with [SEP] the sentence has another feature
