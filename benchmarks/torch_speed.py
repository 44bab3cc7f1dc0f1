"""Our model beside PyTorch on this CPU, in f32: images a second of a forward pass and of a train step, as ratios.

Usage: python -m benchmarks.torch_speed --case vit|irm [--rows 8] [--pairs 5] [--compile] [--threads 2]
       python -m benchmarks.torch_speed --case release --checkout Instruct-ReID

`vit`: a plain ViT-B/16 at 256x128, timm's (torch's fused attention) against `ViTModule`, loss the mean of fourth
powers (squares have a constant mean after the last norm). Both give the class token; ours computes the last block for
it alone, as text-to-image retrieval does, "jax, all tokens" for every token; "jax, plain" is without the forms that
attention and the gradients of dense layers have on a CPU.
`irm`: the whole `base` IRM under one constant sentence (task trad), `benchmarks.torch_irm` against the embedding of an
evaluation, which encodes the sentence once for all batches, and the real train step with its loss. `release`: the same
of ours against the authors' own code (`benchmarks.torch_release`), in a checkout that you make. Both sides start from
the same weights, and what they compute first is compared; both update with AdamW (torch's fused one; theirs as they
call it). Without dropout and stochastic depth on either side. The sides take turns within one process; a ratio above 1
says that ours is faster. Needs torch and timm (`pip install -e '.[parity]'`); `--compile` adds torch.compile, which
needs a C++ compiler (of the whole model to the forward pass: the loss loops over rows).

The products of each pass are counted as well: by torch's counter, which leaves out its fused attention (3% of case
vit), and by ours. Where products take the time and run equally fast, ours is as many times faster as it needs fewer.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import dataclasses
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from irm_jax import allocator

if __name__ == "__main__":
    allocator.restart_with_tunables()  # as a run does

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from irm_jax.compile import analytic_flops


@dataclasses.dataclass(frozen=True)
class Step:
    """A pass of one side, and what counts the FLOPs of its products."""

    call: Callable[[], Any]
    flops: Callable[[], int]


HEADS, DEPTH, SIZE, PATCH, RATE, DECAY = 12, 12, (256, 128), 16, 1e-6, 5e-4
MARGIN, ALPHA = 0.3, 3.0


def relative(ours: Any, theirs: Any) -> float:
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def images(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, *SIZE, 3), dtype=np.uint8)


def vit(rows: int, compiled: bool) -> dict[str, dict[str, Step]]:
    """The two passes of each side, by pass and side."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from irm_jax.convert.conversion import take
    from irm_jax.models.encoders.features import IMAGENET_MEAN, IMAGENET_STD
    from irm_jax.models.encoders.vit import TIMM
    from irm_jax.models.encoders.vit_module import ViTModule
    from irm_jax.models.plain_forms import plain_forms
    from irm_jax.models.transformer import BlockConfig
    from irm_jax.models.weight_files import Tensors

    torch.manual_seed(0)
    theirs = VisionTransformer(img_size=SIZE, patch_size=PATCH, num_classes=0, global_pool="token")
    pixels = images(rows)
    mean, std = (np.asarray(x, np.float32) for x in (IMAGENET_MEAN, IMAGENET_STD))
    normal = torch.tensor((pixels / np.float32(255) - mean) / std).permute(0, 3, 1, 2).contiguous()

    sizes = {"width": 768, "heads": HEADS, "grid": (SIZE[0] // PATCH, SIZE[1] // PATCH)}
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = unflatten_dict(take(TIMM, Tensors(tensors), sizes)[0], sep="/")
    encoder = ViTModule(BlockConfig(width=768, heads=HEADS), DEPTH, SIZE, PATCH, PATCH, part_tokens=0)

    optimizer = optax.adamw(RATE, weight_decay=DECAY)

    def passes(*, plain: bool = False, class_only: bool = True) -> tuple[Callable[..., Any], Callable[..., Any]]:
        def forward(params: Any, image: jax.Array) -> jax.Array:
            with plain_forms() if plain else contextlib.nullcontext():
                return encoder.apply({"params": params}, image, train=False, class_only=class_only).cls

        def step(state: Any, image: jax.Array) -> Any:
            params, moments = state
            loss, gradient = jax.value_and_grad(lambda params: jnp.mean(forward(params, image) ** 4))(params)
            updates, moments = optimizer.update(gradient, moments, params)
            return (optax.apply_updates(params, updates), moments), loss

        return forward, step

    ours = {"jax, plain": passes(plain=True), "jax, all tokens": passes(class_only=False), "jax": passes()}

    def torch_loss(model: Any) -> Callable[[], Any]:
        return lambda: (model(normal) ** 4).mean()

    image = jnp.asarray(pixels)
    return {
        "forward": torch_forward(theirs, (normal,), compiled)
        | {side: jax_forward(forward, params, image) for side, (forward, _) in ours.items()},
        "step": torch_step(theirs, torch_loss, compiled)
        | {side: jax_step(step, (params, optimizer.init(params)), (image,)) for side, (_, step) in ours.items()},
    }


def irm(rows: int, compiled: bool, checkout: Path | None = None) -> dict[str, dict[str, Step]]:
    """The two passes of each side, by pass and side; theirs is the authors' code where a checkout of it is given."""
    import torch

    from benchmarks import torch_irm, torch_release
    from data_pipelines import tasks
    from data_pipelines.instructions.tokenizer import Tokenizer
    from irm_jax.evaluation import embed
    from irm_jax.models import presets
    from irm_jax.models.irm import IRM
    from irm_jax.parallel import mesh as mesh_lib
    from irm_jax.training import optimizer, state
    from irm_jax.training.optimizer import OptimizerOptions
    from irm_jax.training.step import StepOptions, make_train_step

    torch.manual_seed(0)
    if checkout is None:
        sizes = torch_irm.Sizes()
        theirs = torch_irm.Model(sizes).eval()
    else:
        sizes = torch_irm.Sizes(vocabulary=torch_release.VOCABULARY)
        theirs = torch_release.Model(checkout, sizes.identities, sizes.max_length).eval()
    tokenizer, sentence = Tokenizer(max_length=sizes.max_length), tasks.task("trad").sentence
    tokens = tokenizer.encode([sentence])
    sentences = torch.tensor(np.repeat(tokens, rows, 0)).long()
    pixels, identity = images(rows), np.arange(rows, dtype=np.int32) // 4

    # Its templates are not used; one block instead of twelve spares our optimizer weights that the other side lacks.
    model = IRM(
        presets.preset(
            "base", text_dropout=0.0, drop_path=0.0, editing_drop_path=0.0, vocab_size=sizes.vocabulary,
            num_identities=sizes.identities, template_depth=1, mask_instruction_padding=False,
        )
    )  # fmt: skip
    mesh = mesh_lib.make_mesh({"data": 1, "fsdp": 1, "model": 1}, jax.devices()[:1])
    rule = optimizer.make_optimizer(
        OptimizerOptions(learning_rate=RATE, steps=10_000, warmup_steps=0, weight_decay=DECAY)
    )
    start = state.create_state(model, rule, tokens, 0, mesh)
    params, stats = (flatten_dict(tree, sep="/") for tree in (start.params, start.batch_stats))
    for name, array in torch_irm.our_arrays(theirs.arrays(), sizes).items():
        target = stats if name.startswith("batch_stats/") else params
        name = name.removeprefix("batch_stats/")
        assert target[name].shape == array.shape, (name, target[name].shape, array.shape)
        target[name] = jnp.asarray(array)
    start = start.replace(params=unflatten_dict(params, sep="/"), batch_stats=unflatten_dict(stats, sep="/"))

    blank, none = jnp.zeros((1, rows), jnp.int32), jnp.zeros((1, 0), jnp.int32)
    group = {
        "image": jnp.asarray(pixels)[None], "instruction": blank - 1,
        "table": jnp.zeros((1, 0, tokens.shape[1]), jnp.int32),
        "identity": jnp.asarray(identity)[None], "dataset": blank, "task": blank + tasks.task("trad").id,
        "attributes": blank, "valid": jnp.ones((1, rows), bool), "instruction_key": blank - 1, "composed_row": none,
        "composed_instruction": none,
    }  # fmt: skip
    objective = torch_irm.our_objective(tasks.task("trad"), sizes, alpha=ALPHA, margin=MARGIN)
    step = make_train_step(model, rule, [objective], mesh, StepOptions(momentum_decay=0.0))
    constants, key = jnp.asarray(tokens), jax.random.key(0)

    # As an evaluation embeds: sentences once, then batch by batch. The train step takes its state over.
    variables = jax.tree.map(jnp.copy, {"params": start.params, "batch_stats": start.batch_stats})
    embedder = embed.EmbeddingModel(model, variables, tokenizer, mesh, rows)
    table, first = embedder.instructions([sentence]), np.zeros(rows, np.int32)
    torch_pixels, torch_identity = torch.tensor(pixels), torch.tensor(identity).long()

    class Retrieval(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = theirs

        def forward(self, image: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(self.model.embed(image, words))

    def torch_loss(model: Any) -> Callable[[], Any]:
        return partial(model.loss, torch_pixels, sentences, torch_identity, alpha=ALPHA, margin=MARGIN)

    batch = {"text": group}

    def ours(current: Any, batch: Any) -> Any:
        current, metrics = step(current, batch, constants, key)
        return current, metrics["loss"]

    def embedding() -> Any:
        return embed.of_length_one(np.asarray(embedder.edit(embedder.image_features(pixels), table, first).embedding))

    def embedding_flops() -> int:
        encode, _, edit, take = embedder.functions()
        with jax.set_mesh(mesh):
            features, asked = jax.eval_shape(encode, variables, pixels), jax.eval_shape(take, table, first)
            programs = jax.make_jaxpr(encode)(variables, pixels), jax.make_jaxpr(edit)(variables, features, asked)
        return sum(analytic_flops.count(program).total() for program in programs)

    return {
        "forward": torch_forward(Retrieval().eval(), (torch_pixels, sentences), compiled)
        | {"jax": Step(embedding, embedding_flops)},
        "step": torch_step(theirs, torch_loss, False, None if checkout is None else theirs.optimizer(RATE))
        | {"jax": jax_step(ours, start, (batch,), mesh)},
    }


def torch_forward(model: Any, arguments: tuple[Any, ...], compiled: bool) -> dict[str, Step]:
    import torch

    def run(model: Any) -> Step:
        def call() -> Any:
            with torch.inference_mode():
                return model(*arguments)

        return Step(call, lambda: torch_flops(call))

    return {"torch": run(model)} | ({"torch.compile": run(torch.compile(model))} if compiled else {})


def torch_step(
    model: Any, loss_of: Callable[[Any], Callable[[], Any]], compiled: bool, optimizer: Any = None
) -> dict[str, Step]:
    import torch

    def run(model: Any, called: Any) -> Step:
        rule = optimizer or torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, fused=True)
        loss = loss_of(called)

        def call() -> Any:
            model.train()
            rule.zero_grad()
            value = loss()
            value.backward()
            rule.step()
            model.eval()
            return float(value.detach())

        return Step(call, lambda: torch_flops(call))

    sides = {"torch": run(model, model)}
    if compiled:
        other = copy.deepcopy(model)  # that both start from the same weights
        sides["torch.compile"] = run(other, torch.compile(other))
    return sides


def jax_step(function: Callable[..., Any], state: Any, arguments: tuple[Any, ...], mesh: Mesh | None = None) -> Step:
    """`function(state, *arguments) -> (state, loss)`, jitted unless it runs within a mesh of its own."""
    held = [jax.tree.map(jnp.copy, state)]
    run = function if mesh else jax.jit(function, donate_argnums=0)

    def within() -> contextlib.AbstractContextManager[Any]:
        return jax.set_mesh(mesh) if mesh else contextlib.nullcontext()

    def call() -> Any:
        with within():
            held[0], loss = run(held[0], *arguments)
        return loss

    def flops() -> int:
        with within():
            return analytic_flops.count(jax.make_jaxpr(function)(held[0], *arguments)).total()

    return Step(call, flops)


def jax_forward(function: Callable[..., jax.Array], *arguments: Any) -> Step:
    run = jax.jit(function)
    return Step(lambda: run(*arguments), lambda: analytic_flops.count(jax.make_jaxpr(function)(*arguments)).total())


def torch_flops(call: Callable[[], Any]) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=("vit", "irm", "release"), required=True)
    parser.add_argument(
        "--checkout", type=Path, help="case release: folder of https://github.com/hwz-zju/Instruct-ReID"
    )
    parser.add_argument("--rows", type=int, default=8, help="images a batch")
    parser.add_argument("--pairs", type=int, default=5, help="turns of every side")
    parser.add_argument("--compile", action="store_true", help="also torch.compile")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch")
    args = parser.parse_args()
    if (args.case == "release") != (args.checkout is not None):
        parser.error("--case release and --checkout go together")
    import torch

    torch.set_num_threads(args.threads)
    passes = vit(args.rows, args.compile) if args.case == "vit" else irm(args.rows, args.compile, args.checkout)
    for name, sides in passes.items():
        first = {side: jax.block_until_ready(step.call()) for side, step in sides.items()}
        print(
            f"{name:>8} differs: "
            + ", ".join(f"{relative(first['jax'], x):.1e} from {side}" for side, x in first.items() if side != "jax")
        )
        flops = {side: step.flops() for side, step in sides.items() if side != "torch.compile"}
        print(f"{name:>8} products: " + ", ".join(f"{side} {count / 1e9:.0f} GFLOP" for side, count in flops.items()))
        for step in sides.values():
            jax.block_until_ready(step.call())
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.pairs):
            for side, step in sides.items():
                begin = time.perf_counter()
                jax.block_until_ready(step.call())
                seconds[side].append(time.perf_counter() - begin)
        for side, found in seconds.items():
            ratio = statistics.median(t / own for t, own in zip(found, seconds["jax"], strict=True))
            speed = args.rows / statistics.median(found)
            print(f"{name:>8} {side:>15}: {speed:6.2f} images/s; jax is {ratio:.2f} times as fast")


if __name__ == "__main__":
    main()
