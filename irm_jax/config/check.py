"""Checks a configuration before a device is touched: every key exists, types fit, values do not contradict."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from ml_collections import ConfigDict

from data_pipelines import images, options, storage, tasks
from data_pipelines.batches import layout
from data_pipelines.instructions.tokenizer import Tokenizer
from irm_jax.config import layer_rates
from irm_jax.config.check_keys import check_keys
from irm_jax.config.keys import COMPILED_STEPS, EXPORT_FORMATS, EXPORT_FUNCTIONS
from irm_jax.convert import manifest
from irm_jax.errors import ConfigError
from irm_jax.evaluation import protocols
from irm_jax.evaluation.figures import MEAN
from irm_jax.evaluation.report import gallery_map
from irm_jax.logs import timing, writers
from irm_jax.models import config as models_config
from irm_jax.models import encoders, presets


def check(config: ConfigDict) -> None:
    """Raises ConfigError for the first thing that is wrong."""
    check_keys(config)
    check_values(config)


AT_LEAST = {
    **dict.fromkeys(
        (
            "data.batch_size", "data.batch_blocks", "data.prefetch", "train.steps", "train.log_every",
            "optimizer.accumulate", "checkpoint.keep", "evaluation.batch_size", "evaluation.top_k", "compare.samples",
            "model.vocab_multiple", "model.identity_multiple", "model.width", "model.image_depth", "model.image_heads",
            "model.patch", "model.stride", "model.text_depth", "model.text_heads", "model.instruction_tokens",
            "model.template_depth", "model.template_heads", "model.template_patch", "model.editing_depth",
            "model.editing_patches", "model.projection_width", "explain.points",
        ),
        1,
    ),
    **dict.fromkeys(
        (
            "data.workers", "data.threads", "train.evaluate_every", "checkpoint.every", "optimizer.warmup_steps",
            "optimizer.weight_decay", "optimizer.clip_norm", "evaluation.query_block", "evaluation.rescore_top",
            "evaluation.two_stage",
            "report.queries", "report.rollouts", "model.part_tokens", "model.fusion_depth", "loss.alpha", "loss.margin",
            "loss.rank_weight", "loss.composed_weight", "loss.contrast_weight", "loss.composed_contrast_weight",
            "loss.contrastive_weight", "loss.matching_weight", "loss.masked_weight", "loss.replaced_weight",
            "text_to_image.queue_size", "text_to_image.soft_ramp_steps", "memory_bank.size", "memory_bank.ramp_steps",
            "memory_bank.soft_ramp_steps", "memory_bank.weight", "memory_bank.hard_weight", "memory_bank.soft_weight",
            "memory_bank.composed_weight",
        ),
        0,
    ),
    "model.max_length": 3,  # [CLS], a word, [SEP]
}  # fmt: skip
POSITIVE = (
    "model.mlp_ratio", "model.temperature", "optimizer.learning_rate", "memory_bank.temperature",
    "loss.contrast_temperature",
)  # fmt: skip
SHARES = (
    "data.instruction_dropout", "text_to_image.soft_weight", "text_to_image.masked_probability",
    "text_to_image.replaced_probability",
)  # fmt: skip
AT_MOST = {
    **dict.fromkeys(("data.batch_size", "data.batch_blocks", "evaluation.batch_size", "model.vocab_multiple"), 2**20),
    **dict.fromkeys(("evaluation.query_block", "evaluation.top_k", "evaluation.rescore_top"), 2**20),
    "evaluation.two_stage": 2**20,
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.model", "model.identity_multiple"), 2**20),
    **dict.fromkeys(("memory_bank.size", "text_to_image.queue_size", "compare.samples"), 2**28),
    **dict.fromkeys(("data.workers", "data.threads", "data.prefetch", "data.augment.pad"), 4096),
    "optimizer.accumulate": 4096,
    **dict.fromkeys(
        (
            "model.image_depth", "model.text_depth", "model.template_depth", "model.editing_depth",
            "model.fusion_depth", "model.part_tokens", "report.queries", "report.rollouts",
        ),
        1024,
    ),
    **dict.fromkeys(
        (
            "model.width", "model.image_heads", "model.text_heads", "model.template_heads", "model.patch",
            "model.stride", "model.template_patch", "model.max_length", "model.instruction_tokens",
            "model.projection_width", "model.mlp_ratio",
        ),
        2**16,
    ),
    **dict.fromkeys(("data.procedural.train_people", "data.procedural.test_people"), 10**6),
    "optimizer.clip_norm": 1e30,
}  # fmt: skip
"""Far above what a run has: a slip of the hand is refused before anything of that size is allocated."""
SEEDS = ("seed", "data.procedural.seed", "data.own.split_seed")
"""Whole numbers from 0 to 2^32 - 1: of a larger one the devices' generator reads the lowest 32 bits alone."""
BELOW_ONE = (
    "model.text_dropout", "model.drop_path", "model.patch_dropout", "model.editing_drop_path", "optimizer.beta1",
    "optimizer.beta2", "momentum.decay", "loss.instruction_mean_momentum", "data.own.test_share",
)  # fmt: skip
"""Ranges of numbers by path below `config`. Values left to the preset (None) are not checked."""


def _range_problems(config: ConfigDict) -> Iterator[str]:
    rules: list[tuple[Iterable[str], Callable[[str, Any], bool], str]] = [
        (AT_LEAST, lambda key, value: value >= AT_LEAST[key], "must be at least {least}"),
        (POSITIVE, lambda _, value: value > 0, "must be positive"),
        (SHARES, lambda _, value: 0 <= value <= 1, "must lie between 0 and 1"),
        (BELOW_ONE, lambda _, value: 0 <= value < 1, "must be at least 0 and below 1"),
        (SEEDS, lambda _, value: 0 <= value < 2**32, "must be a whole number from 0 to 4,294,967,295 (2^32 - 1)"),
        (AT_MOST, lambda key, value: value <= AT_MOST[key], "must be at most {most:,}"),
    ]
    for paths, fits, words in rules:
        for path in paths:
            value = functools.reduce(lambda table, key: table[key], path.split("."), config)
            if value is not None and not fits(path, value):
                yield f"config.{path} = {value} {words.format(least=AT_LEAST.get(path), most=AT_MOST.get(path))}"
    for key in ("image_size", "instruction_image_size"):
        size = config.model[key]
        if size is not None and not all(1 <= side <= 2**14 for side in size):
            yield f"config.model.{key} = {tuple(size)}; it must be (height, width) in pixels"


def _model_problems(config: ConfigDict) -> Iterator[str]:
    m = config.model
    if m.preset not in presets.PRESETS:
        yield f"config.model.preset = {m.preset!r}; the presets are {', '.join(presets.PRESETS)}"
    if m.dtype not in ("float32", "bfloat16"):
        yield f"config.model.dtype = {m.dtype!r}; it must be float32 or bfloat16 (parameters are always float32)"
    if m.remat not in models_config.REMAT:
        yield f"config.model.remat = {m.remat!r}; it must be one of {', '.join(models_config.REMAT)}"
    if m.template_statistics not in (None, "clip", "imagenet"):
        yield f"config.model.template_statistics = {m.template_statistics!r}; it must be clip or imagenet"
    for key in ("stem", "template_stem"):
        if m[key] not in (None, "patch", "conv"):
            yield f"config.model.{key} = {m[key]!r}; it must be patch or conv"
    yield from _refused("config.model", lambda: presets.from_options(m.to_dict()))


def _init_problems(config: ConfigDict) -> Iterator[str]:
    model, words = presets.from_options(config.model.to_dict()), Tokenizer(vocab=config.data.vocab)
    yield from manifest.problems(config.init, model, words.entries, config.data.vocab)


def _data_problems(config: ConfigDict) -> Iterator[str]:
    d = config.data
    if not d.train and not d.table:  # a table makes entries of its own (config.own_data)
        yield "config.data.train is empty: name at least one data set, as configs/procedural.py does"
    for axis, size in config.mesh.items():
        if size < 1 and size != -1:
            yield f"config.mesh.{axis} = {size}; it must be a number of devices, or -1 for the rest"
    if d.own.on_bad_image not in ("error", "skip"):
        yield f"config.data.own.on_bad_image = {d.own.on_bad_image!r}; it must be error or skip"
    for name in set(d.own.tasks) - set(tasks.TASKS):
        yield f"config.data.own.tasks names {name!r}; the tasks are {', '.join(tasks.TASKS)}"
    if d.leaks not in ("refuse", "warn"):
        yield f"config.data.leaks = {d.leaks!r}; it must be refuse or warn"
    if not str(d.dir).strip():
        yield "config.data.dir is empty; name the folder of the built data sets (default: data)"
    if not 1 <= d.max_pixels <= images.MOST_MAX_PIXELS:
        yield f"config.data.max_pixels = {d.max_pixels}; it must lie between 1 and {images.MOST_MAX_PIXELS}"
    yield from _refused("config.data.dir", lambda: storage.require_data_folder(d.dir, d.cache))
    yield from _refused("config.data.vocab", lambda: Tokenizer(vocab=d.vocab))
    yield from _refused("config.data.procedural", lambda: options.benchmark_of(config))
    for name, unit in d.train.items():
        if unit.task not in tasks.TASKS:
            yield f"config.data.train.{name}.task = {unit.task!r}; the tasks are {', '.join(tasks.TASKS)}"
            continue
        if not unit.data_set.strip():
            yield f"config.data.train.{name}.data_set is empty; name a data set of data.dir"
        if (unit.outfits or 0) < 0:
            yield f"config.data.train.{name}.outfits = {unit.outfits} must be at least 0 (0 = any)"
        per_identity = unit.images_per_identity
        if per_identity is not None and not 1 <= per_identity <= 4096:
            yield f"config.data.train.{name}.images_per_identity = {per_identity} must lie in 1 ... 4096"
        spec = tasks.task(unit.task)
        if spec.has_query_image and per_identity is not None and per_identity < 2:
            yield (
                f"config.data.train.{name}.images_per_identity = {per_identity}: the triplet loss of task "
                f"{unit.task} needs at least 2 images of each identity in a batch"
            )
        if unit.loss_weight < 0:
            yield f"config.data.train.{name}.loss_weight = {unit.loss_weight} must not be negative"
        yield from _refused(f"config.data.train.{name}", partial(options.augment_of, config, name))
    yield from _refused("config.data.train", lambda: options.units_of(config))
    yield from _refused("config.data.train", lambda: options.augments_of(config))
    sizes = partial(encoders.sizes_of, presets.from_options(config.model.to_dict()))
    yield from _refused("config.data.growth", lambda: sizes(options.growth_of(config)))
    if d.train and (problem := block_problem(config, max(config.mesh.data, 1) * max(config.mesh.fsdp, 1))):
        yield problem
    if d.train:
        yield from _refused(
            "config.data.batch_size",
            lambda: layout.identities_per_block(options.units_of(config), d.batch_size, d.batch_blocks),
        )
    if d.train and not sum(unit.loss_weight for unit in d.train.values()) > 0:
        yield "the loss_weight of every data set in config.data.train is 0; give at least one a positive weight"


def block_problem(config: ConfigDict, pieces: int) -> str | None:
    """The message if `pieces` shards of rows do not divide the blocks of a batch, with keys that fit; or None."""
    d = config.data
    if d.batch_blocks % pieces == 0:
        return None
    blocks, size = fitting_batch(config, pieces)
    return (
        f"config.data.batch_blocks = {d.batch_blocks} does not divide over the {pieces} devices of mesh.data * "
        f"mesh.fsdp; set --config.data.batch_blocks={blocks} --config.data.batch_size={size} (a step had "
        f"{d.batch_size} rows; a block holds whole people of every data set), or use fewer devices"
    )


def fitting_batch(config: ConfigDict, pieces: int) -> tuple[int, int]:
    """The nearest (batch_blocks, batch_size) that `pieces` shards of rows allow, with no fewer rows."""
    d = config.data
    blocks = pieces * max(1, round(d.batch_blocks / pieces))
    return blocks, layout.next_batch_size(options.units_of(config), d.batch_size, blocks)


def _run_problems(config: ConfigDict) -> Iterator[str]:
    o, t, e, loss = config.optimizer, config.train, config.evaluation, config.loss
    if loss.instruction_similarity not in ("centered", "raw"):
        yield f"config.loss.instruction_similarity = {loss.instruction_similarity!r}; it must be centered or raw"
    if loss.triplet_unit not in ("feature", "spread"):
        yield f"config.loss.triplet_unit = {loss.triplet_unit!r}; it must be feature or spread"
    if e.metric not in ("cosine", "euclidean"):
        yield f"config.evaluation.metric = {e.metric!r}; it must be cosine or euclidean"
    if e.tau_similarity not in ("attributes", "clothes", "model"):
        yield f"config.evaluation.tau_similarity = {e.tau_similarity!r}; it must be attributes, clothes or model"
    if any(not isinstance(tau, int | float) or not 0 <= tau <= 1 for tau in e.taus):
        yield f"config.evaluation.taus = {tuple(e.taus)}; each must lie between 0 and 1"
    if o.warmup_steps > t.steps:
        yield (
            f"config.optimizer.warmup_steps = {o.warmup_steps} is longer than the run, config.train.steps = {t.steps}: "
            f"the learning rate would never reach its peak; set --config.optimizer.warmup_steps={t.steps // 10}"
        )
    if not re.fullmatch("latest|best|[0-9]{1,9}", e.checkpoint):
        yield f"config.evaluation.checkpoint = {e.checkpoint!r}; it must be latest, best or the number of a step"
    for key, what in (("embed", "file of the workdir, such as embeddings.npz"), ("export", "folder to make")):
        if not config[key].output.strip():
            yield f"config.{key}.output is empty; name a {what}"
    for key, known in (("formats", EXPORT_FORMATS), ("functions", EXPORT_FUNCTIONS)):
        if not config.export[key] or set(config.export[key]) - set(known):
            yield f"config.export.{key} = {tuple(config.export[key])}; it must name one or more of {', '.join(known)}"
    try:
        re.compile(o.no_decay)
    except re.error as error:
        yield f"config.optimizer.no_decay = {o.no_decay!r} is no regular expression: {error}"
    rates = layer_rates.LayerRates(o.frozen, tuple(o.rate_multipliers), o.layer_decay)
    yield from _refused("config.optimizer", rates.check)
    yield from _refused("config.profile", lambda: timing.profiled_steps(config.profile))
    if (traced := timing.profiled_steps(config.profile)) and traced[0] > t.steps:
        yield f"config.profile = {config.profile!r} begins after the last step, config.train.steps = {t.steps}"
    if unknown := set(config.logs.writers) - set(writers.WRITERS):
        yield (f"config.logs.writers names {', '.join(sorted(unknown))}; the writers are {', '.join(writers.WRITERS)}")
    steps = tuple(config.compile.steps)
    if not steps or set(steps) - set(COMPILED_STEPS):
        yield f"config.compile.steps = {steps}; it must name one or more of {', '.join(COMPILED_STEPS)}"
    if config.compile.search_batch and "train" not in steps:
        yield "config.compile.search_batch looks for a training batch; add 'train' to config.compile.steps"
    yield from _test_set_problems(config)


def _bank_problems(config: ConfigDict) -> Iterator[str]:
    b, here = config.memory_bank, "config.memory_bank"
    if b.dtype not in ("float32", "bfloat16"):
        yield f"{here}.dtype = {b.dtype!r}; it must be float32 or bfloat16"
    if b.negatives not in ("all", "task"):
        yield f"{here}.negatives = {b.negatives!r}; it must be all or task"
    yield from _overlap_problems(b.overlaps, here)
    trained = {unit.data_set for unit in config.data.train.values()}
    for name in [name for pair in b.overlaps for name in pair.split(":")] if b.size and trained else ():
        if name not in trained:
            yield (
                f"{here}.overlaps names {name}, which is not trained on; the training sets are "
                f"{', '.join(sorted(trained))}"
            )
    known = [unit.task for unit in config.data.train.values() if unit.task in tasks.TASKS]
    if b.size and known and not any(tasks.task(name).has_query_image for name in known):
        yield f"{here}.size = {b.size}: a bank holds keys of rows with an instruction, and no training set has any"


def _overlap_problems(pairs: Sequence[str], table: str) -> Iterator[str]:
    for pair in pairs:
        names = pair.split(":")
        if len(names) != 2 or not all(names):
            yield f"{table}.overlaps: {pair!r} is no pair of data sets; write 'A:B'"
        elif names[0] == names[1]:
            yield f"{table}.overlaps: {pair!r} is one data set; name two, 'A:B'"


def _caption_problems(config: ConfigDict) -> Iterator[str]:
    t, loss, here = config.text_to_image, config.loss, "config.text_to_image"
    if t.queue_size and not t.momentum_contrast:
        yield (
            f"{here}.queue_size = {t.queue_size}, but the queue is read by the momentum contrast only; set "
            f"{here}.momentum_contrast=True, or queue_size to 0"
        )
    asked = [key for key in ("matching_weight", "masked_weight", "replaced_weight") if loss[key] > 0]
    depth = presets.from_options(config.model.to_dict()).fusion_depth
    if asked and depth < 1:
        yield (
            f"config.loss.{asked[0]} = {loss[asked[0]]} needs the layers in which captions read images; set "
            "config.model.fusion_depth (ALBEF: 6)"
        )
    given = asked + [f"{here}.momentum_contrast"] * t.momentum_contrast
    known = [unit.task for unit in config.data.train.values() if unit.task in tasks.TASKS]
    if given and known and all(tasks.task(name).has_query_image for name in known):
        yield f"config: {given[0]} is on, but no training set has captions (task t2i); switch it off or add one"


def _test_set_problems(config: ConfigDict) -> Iterator[str]:
    sets = config.evaluation.sets
    if not sets and not config.data.table:
        yield "config.evaluation.sets is empty: name at least one test set, as configs/procedural.py does"
    for name, entry in sets.items():
        here = f"config.evaluation.sets.{name}"
        if entry.task not in tasks.TASKS:
            yield f"{here}.task = {entry.task!r}; the tasks are {', '.join(tasks.TASKS)}"
        for key in ("data_set", "query_split", "gallery_split"):
            if not entry[key].strip():
                yield f"{here}.{key} is empty"
        if not entry.protocols:
            yield f"{here}.protocols is empty; name at least one protocol"
        yield from _protocol_problems(f"{here}.protocols", entry.protocols)
    yield from _overlap_problems(config.evaluation.overlaps, "config.evaluation")
    tested = {entry.data_set for entry in sets.values()}
    for name in (name for pair in config.evaluation.overlaps for name in pair.split(":")):
        if name not in tested:
            yield (
                f"config.evaluation.overlaps names {name}, which no test set shows; the data sets there are "
                f"{', '.join(sorted(tested))}"
            )
    yield from _best_metric_problems(config)


def _protocol_problems(here: str, names: Sequence[str]) -> Iterator[str]:
    known: dict[str, str] = {}
    for name in names:
        yield from _refused(here, partial(protocols.protocol_of, name))
        rule = protocols.protocol_of(name).name
        if rule in known:
            yield f"{here}: {known[rule]} and {name} are one rule, {rule}; name it once"
        known[rule] = name


def _best_metric_problems(config: ConfigDict) -> Iterator[str]:
    best, sets = config.checkpoint.best_metric, config.evaluation.sets
    test_set, slash, name = best.partition("/")
    if best == MEAN or (test_set in sets and not slash):
        return
    if test_set in sets:
        yield from _refused("config.checkpoint.best_metric", partial(protocols.protocol_of, name))
        if protocols.protocol_of(name) in map(protocols.protocol_of, sets[test_set].protocols):
            return
    yield (
        f"config.checkpoint.best_metric = {best!r}; it must be {MEAN}, a test set ({', '.join(sets)}) or "
        "TEST_SET/PROTOCOL with one of its protocols (their mAP)"
    )


def _refused(where: str, make: Callable[[], object]) -> Iterator[str]:
    """The message of the part itself, if it refuses its options."""
    try:
        make()
    except (ValueError, OSError) as error:
        yield f"{where}: {error}"


def _report_problems(config: ConfigDict) -> Iterator[str]:
    if config.explain.map not in gallery_map.METHODS:
        yield f"config.explain.map = {config.explain.map!r}; it must be one of {', '.join(gallery_map.METHODS)}"
    for entry in config.report.best_known:
        found = re.fullmatch(r"([^=]+)=(0?\.\d+|1(?:\.0*)?|0)(?:\s+(.*))?", entry)
        if not found or found[1] not in config.evaluation.sets:
            yield (
                f"config.report.best_known: {entry!r} must be TEST_SET=mAP SOURCE, with mAP between 0 and 1 and one of "
                f"the test sets {', '.join(config.evaluation.sets)}"
            )


def check_values(config: ConfigDict) -> None:
    """Raises ConfigError for the first value that is out of range or contradicts another."""
    checks = (
        _range_problems, _model_problems, _data_problems, _init_problems, _run_problems, _bank_problems,
        _caption_problems, _report_problems,
    )  # fmt: skip
    for problems in checks:
        for problem in problems(config):
            raise ConfigError(problem)
