"""What the memory bank costs at paper scale: time beside the `base` training step, and memory beside the bank itself.

Usage: python -m benchmarks.bank_cost [--rows 64] [--size 65536] [--dtype float32] [--step [--step_rows 8]]

Compiles the bank's own part of a step (similarities, hard and soft loss, gradient to the anchors, push) for `rows`
anchors and keys of 2 x 768, times it, and reads its peak memory from the compiled program: at most the bank and four
arrays of rows x size floats are wanted (of float32 keys: XLA's CPU compiler, unlike that for TPUs, widens bfloat16 by
itself). `--step` also times the forward and backward pass of the `base` model for `step_rows` rows (scaled to `rows`;
a row's cost does not depend on their number at this size), and the momentum forward alone. The ratios to the step
without either are the figures; absolute times are this machine's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax.losses.memory_bank_loss import Anchors, Rules, memory_bank_loss
from irm_jax.models import presets
from irm_jax.models.irm import IRM, initialise
from irm_jax.objectives import lanes
from irm_jax.objectives.lanes import BankLanes, MomentumKeys

WIDTH = 768
BLOCKS = 8


def timed(function: Callable[..., Any], arguments: Callable[[], tuple[Any, ...]], repeats: int) -> float:
    """Median seconds of a call; `arguments` makes fresh ones, since a call may take them over."""
    seconds = []
    for _ in range(repeats + 1):
        given = jax.block_until_ready(arguments())
        begin = time.perf_counter()
        jax.block_until_ready(function(*given))
        seconds.append(time.perf_counter() - begin)
    return float(np.median(seconds[1:]))


def random_entries(rows: int, seed: int, dtype: str = "float32") -> MomentumKeys:
    random = np.random.default_rng(seed)

    def unit(width: int) -> jax.Array:
        values = random.normal(size=(rows, width)).astype(np.float32)
        return jnp.asarray(values / np.linalg.norm(values, axis=1, keepdims=True), dtype)

    number = [jnp.asarray(random.integers(0, top, rows), jnp.int32) for top in (6555, 10, 6, 2)]
    return MomentumKeys(unit(2 * WIDTH), unit(WIDTH), *number)


def bank_part(bank: BankLanes, embedding: jax.Array, batch: MomentumKeys) -> tuple[jax.Array, jax.Array, BankLanes]:
    """Loss, gradient to the anchors, and the bank after the push."""
    rules = Rules(jnp.zeros((10, 10), bool), (4,), False)
    rows = embedding.shape[0]

    def loss(z: jax.Array) -> jax.Array:
        hard, soft, _ = memory_bank_loss(
            Anchors(z, batch, jnp.arange(rows, dtype=jnp.int32), jnp.ones(rows, bool)), batch, lanes.flat(bank), rules,
            temperature=0.07, soft=True,
        )  # fmt: skip
        return jnp.mean(hard + soft)

    value, gradient = jax.value_and_grad(loss)(embedding)
    return value, gradient, lanes.push(bank, batch, value + jnp.sum(gradient))


def measure_bank(rows: int, size: int, dtype: str, repeats: int) -> float:
    spec = MomentumKeys.spec(2 * WIDTH, WIDTH, jnp.dtype(dtype))
    entries = random_entries(rows, 1)
    embedding = jnp.asarray(np.random.default_rng(2).normal(size=(rows, 2 * WIDTH)), jnp.float32)
    part = jax.jit(bank_part, donate_argnums=0)

    def full_bank() -> BankLanes:
        bank = lanes.create(spec, size, BLOCKS, rows // BLOCKS)
        filled = random_entries(int(np.prod(bank.lanes)), 3, dtype)
        laid = jax.tree.map(lambda new, old: new.reshape(old.shape), filled, bank.entries)
        return BankLanes(laid, bank.pushes)

    bank = full_bank()
    compiled = part.lower(bank, embedding, entries).compile()
    analysis = compiled.memory_analysis()
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(bank))
    extra, scores = analysis.temp_size_in_bytes, 4 * rows * size
    print(
        f"bank of {size:,} {dtype} keys: {held / 2**20:,.0f} MiB; temporary memory {extra / 2**20:,.1f} MiB = "
        f"{extra / scores:.2f} arrays of {rows} x {size:,} floats (wanted: at most 4)"
    )
    seconds = timed(part, lambda: (jax.tree.map(jnp.copy, bank), embedding, entries), repeats)
    print(f"similarities, loss, gradient and push for {rows} anchors: {seconds:.3f} s")
    return seconds


def measure_step(rows: int, repeats: int) -> tuple[float, float]:
    """Seconds a row of the `base` model under a constant sentence: forward and backward, and forward alone."""
    model = IRM(presets.preset("base", text_dropout=0.0, drop_path=0.0, num_identities=8_192, remat="none"))
    tokens = jnp.asarray(Tokenizer(max_length=model.config.max_length).encode(["do not change clothes"]))
    variables = jax.jit(lambda key: model.init(key, tokens, method=initialise))(jax.random.key(0))
    blank = jnp.zeros((1, rows), jnp.int32)
    batch = {
        "text": {
            "image": jnp.zeros((1, rows, *model.config.image_size, 3), jnp.uint8),
            "identity": jnp.arange(rows, dtype=jnp.int32)[None], "valid": jnp.ones((1, rows), bool),
            "instruction": blank - 1, "table": jnp.zeros((1, 0, tokens.shape[1]), jnp.int32),
            "composed_row": blank[:, :0], "composed_instruction": blank[:, :0],
        }
    }  # fmt: skip

    def loss(params: Any) -> jax.Array:
        output, _ = model.apply(
            {"params": params, "batch_stats": variables["batch_stats"]}, batch, tokens, train=True,
            mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)},
        )  # fmt: skip
        edited = output.edited
        logits = jnp.einsum("rbd,di->rbi", edited.person + edited.guided, output.heads["person"])
        return jnp.mean(jax.nn.logsumexp(logits, axis=-1)) + jnp.mean(edited.cls_neck**2)

    def keys(params: Any) -> Any:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        return model.apply(
            given, batch, tokens, method="keys", embeddings=True, captions=False, mutable=["batch_stats"]
        )[0]

    both = timed(jax.jit(jax.grad(loss)), lambda: (variables["params"],), repeats)
    forward = timed(jax.jit(keys), lambda: (variables["params"],), repeats)
    return both / rows, forward / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64, help=f"anchors, a multiple of {BLOCKS}")
    parser.add_argument("--size", type=int, default=65_536, help="keys in the bank")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the keys")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--step", action="store_true", help="also time the base model")
    parser.add_argument("--step_rows", type=int, default=8, help="rows that the base model is timed with")
    args = parser.parse_args()
    bank = measure_bank(args.rows, args.size, args.dtype, args.repeats)
    if args.step:
        step, momentum = (args.rows * x for x in measure_step(args.step_rows, max(args.repeats // 2, 1)))
        print(f"base model, {args.rows} rows: forward and backward {step:.2f} s, momentum forward {momentum:.2f} s")
        print(f"of that: the bank {bank / step:.4f} (wanted: at most 0.03), the momentum forward {momentum / step:.2f}")


if __name__ == "__main__":
    main()
