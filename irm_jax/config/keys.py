"""Every configuration key with its default and a comment. Other files set values; they never add keys.

A key whose default is a typed placeholder (None) takes the model preset's value, or is switched off.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict

from irm_jax.errors import ConfigError

COMPILED_STEPS = ("train", "embed", "ranking")
"""What `--mode compile` can compile."""
EXPORT_FORMATS = ("stablehlo", "onnx")
EXPORT_FUNCTIONS = ("embed_sentence", "embed_picture", "search_sentence", "search_image")
"""What `--mode export` can write (irm_jax/export/functions.py)."""


def train_unit(data_set: str, task: str) -> ConfigDict:
    """One training data set of the joint mix; `config.data.train.<name>`."""
    return ConfigDict(
        {
            "data_set": data_set,  # folder under data.dir
            "task": task,  # trad | cc | ctcc | vi | t2i | li
            "share": 1.0,  # of the batch's rows, relative to the other sets
            "loss_weight": 1.0,  # of the loss, relative to the other sets
            "images_per_identity": config_dict.placeholder(int),  # K of the PK sampler (default: 4, of captions 1)
            "outfits": config_dict.placeholder(int),  # outfits per person and batch (0 = any; default: the task's)
            "composed": config_dict.placeholder(bool),  # add rows that ask for another outfit of the person
            "hue": config_dict.placeholder(float),  # hue jitter of this set (default: data.augment.hue)
            "saturation": config_dict.placeholder(float),  # saturation jitter (default: data.augment.saturation)
            "share_instruction": True,  # one instruction per person, outfit and batch, encoded once
        }
    )


def evaluation_set(data_set: str, task: str, protocols: tuple[str, ...]) -> ConfigDict:
    """One test set; `config.evaluation.sets.<name>`. Its figure under the first protocol is its headline: it counts in
    mean_mAP, and its task-free figure has controls."""
    return ConfigDict(
        {
            "data_set": data_set,  # folder under data.dir
            "task": task,  # trad | cc | ctcc | vi | t2i | li
            "query_split": "query",  # split of the queries
            "gallery_split": "gallery",  # split of the gallery; may be the queries' own (LLCM: test)
            "query_sentence": 0,  # which sentence of a query's record is asked; the gallery has its first
            "distractors": (),  # galleries of a second ranking per protocol: "SPLIT", or "DATA_SET:SPLIT" of another
            "protocols": protocols,  # rules of irm_jax/evaluation/protocols.py
            "task_free": True,  # its gallery joins the union of galleries
        }
    )


def get_config() -> ConfigDict:
    """The configuration with every key at its default, locked."""
    config = ConfigDict()
    config.seed = 0  # of parameters, sampling, augmentation, dropout
    config.resume = True  # continue from the newest checkpoint of the workdir
    config.profile = ""  # START:STOP, such as 10:20: writes a trace of these steps to WORKDIR/profile ('' = none)
    config.compilation_cache = "~/.cache/irm_jax/xla"  # folder of compiled programs ('' = none)

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices over rows (-1 = the rest)
    config.mesh.fsdp = 1  # devices over rows and parameters
    config.mesh.model = 1  # devices over heads, hidden units and identities

    _add_data(config)
    _add_model(config)
    _add_objectives(config)
    _add_training(config)
    _add_modes(config)
    return config.lock()


def _add_data(config: ConfigDict) -> None:
    """Adds the keys of the training data."""
    config.data = ConfigDict()
    config.data.dir = "data"  # folder of the built shards; may be on object storage (gs://, s3://)
    config.data.table = ""  # own pictures: a CSV, TSV, JSON lines or Parquet file, a list or a folder (configs/own.py)
    config.data.own = ConfigDict()  # how data.table is read
    config.data.own.pictures = ""  # folder in which the table's paths begin ('' = the table's)
    config.data.own.tasks = ()  # tasks to train and test (() = all that the columns allow)
    config.data.own.on_bad_image = "error"  # a missing or damaged picture: error | skip (leave its row out)
    config.data.own.test_share = 0.25  # of the people, who are tested where the table has no column split
    config.data.own.split_seed = 0  # of that division
    config.data.cache = ""  # local folder that gets a copy of a data.dir on object storage ('' = read it there)
    config.data.build_missing = True  # build procedural data sets that data.dir lacks
    config.data.leaks = "refuse"  # if people of a training set are tested in another data set: refuse | warn
    config.data.max_pixels = 50_000_000  # of a picture, by its header; a larger one is refused before it is decoded
    config.data.accept_changes = False  # resume although the data or the batch's layout changed since the checkpoint
    config.data.train = ConfigDict()  # name -> train_unit(...)
    config.data.batch_size = 96  # rows of a batch over all instruction kinds and devices
    config.data.batch_blocks = 4  # R: blocks of a batch, a multiple of mesh.data * mesh.fsdp
    config.data.growth = ()  # "STEPS=SHARE": after so many steps, images of this share of height and width (ours)
    config.data.repeat_people = False  # repeat people in a batch that takes more of them than a data set has
    config.data.instruction_dropout = 0.2  # share of rows whose instruction is replaced by the neutral sentence
    config.data.sentences = ConfigDict()  # constant sentences in place of the tasks' own, in training and evaluation
    config.data.sentences.trad = config_dict.placeholder(str)  # own: "do not change clothes"
    config.data.sentences.cc = config_dict.placeholder(str)  # own: "ignore clothes"
    config.data.sentences.vi = config_dict.placeholder(str)  # own: "cross modality"; released models: "cross modiality"
    config.data.vocab = "builtin"  # builtin (the words of the drawn benchmark), or a folder with vocab.txt
    config.data.workers = 0  # reader processes (0 = threads of this one)
    config.data.threads = 2  # reader threads (per process)
    config.data.prefetch = 4  # batches read ahead

    config.data.augment = ConfigDict()
    config.data.augment.jitter_probability = 1.0  # probability of colour jitter
    config.data.augment.brightness = 0.5  # half width of the factor around 1
    config.data.augment.contrast = 0.5  # half width of the factor around 1
    config.data.augment.saturation = 0.5  # half width of the factor around 1
    config.data.augment.hue = 0.4  # half width of the shift, in turns of the colour circle
    config.data.augment.flip_probability = 0.5  # probability of a mirror image
    config.data.augment.crop_probability = 1.0  # probability of padding and a random crop
    config.data.augment.pad = 10  # pixels around an image of 256 rows; scales with the height
    config.data.augment.erase_probability = 0.9  # probability of erasing a box with a random colour
    config.data.augment.erase_area = (0.02, 0.2)  # share of the image
    config.data.augment.erase_aspect = (0.3, 3.33)  # height over width

    config.data.procedural = ConfigDict()
    config.data.procedural.seed = 0  # of the benchmark's people, outfits and images
    config.data.procedural.train_people = 96  # per task
    config.data.procedural.test_people = 64  # shared by all test sets
    config.data.procedural.image_size = (128, 64)  # height, width in pixels
    config.data.procedural.template_size = (64, 64)  # of instruction images; height, width in pixels
    config.data.procedural.extras = ()  # further slots of an outfit: shoes, hat, sleeves
    config.data.procedural.edition = 1  # 1 | 2: larger heads, many training outfits, sentences of three lengths
    config.data.procedural.hard = False  # camera gains of +-30%, which put colour histograms at chance


def _add_model(config: ConfigDict) -> None:
    """Adds the keys of the model and its initial weights."""
    config.model = ConfigDict()
    config.model.preset = "tiny"  # tiny | small | base
    config.model.image_encoder = "vit"  # of persons: a name of irm_jax.models.encoders.ENCODERS
    config.model.image_encoder_options = ConfigDict()  # what that encoder has beside the keys below; none of vit's
    config.model.dtype = "float32"  # of the computation: float32 | bfloat16; parameters stay float32
    config.model.scan_layers = False  # compile one block and loop over it
    config.model.remat = "none"  # what backward passes recompute: none | minimal (all but dense layers) | full
    config.model.mask_instruction_padding = True  # False: attend to padding, as the released code does
    config.model.pooled_class_token = False  # of the ViTs: it starts from the pooled patches (ours; not the paper's)
    config.model.sentence_sep = True  # end sentences with [SEP]; ALBEF, RaSa and the released IRM do not
    config.model.vocab_multiple = 256  # the word table is padded to a multiple of this
    config.model.identity_multiple = 1024  # the identity heads are padded to a multiple of this
    config.model.width = config_dict.placeholder(int)  # of all encoders
    config.model.image_size = config_dict.placeholder(tuple)  # height, width in pixels
    config.model.image_depth = config_dict.placeholder(int)  # blocks of the image encoder
    config.model.image_heads = config_dict.placeholder(int)  # attention heads of that encoder
    config.model.patch = config_dict.placeholder(int)  # pixels; of a patch stem
    config.model.stride = config_dict.placeholder(int)  # pixels
    config.model.stem = config_dict.placeholder(str)  # patch | conv
    config.model.part_tokens = config_dict.placeholder(int)  # of the image encoder (PASS: 3)
    config.model.text_depth = config_dict.placeholder(int)  # text-only BERT layers
    config.model.text_heads = config_dict.placeholder(int)  # attention heads of that encoder
    config.model.max_length = config_dict.placeholder(int)  # tokens of a sentence
    config.model.instruction_tokens = config_dict.placeholder(int)  # read for editing, at least a template's
    config.model.instruction_image_size = config_dict.placeholder(tuple)  # height, width in pixels
    config.model.template_depth = config_dict.placeholder(int)  # blocks of the instruction-image encoder
    config.model.template_heads = config_dict.placeholder(int)  # attention heads of that encoder
    config.model.template_patch = config_dict.placeholder(int)  # pixels
    config.model.template_stem = config_dict.placeholder(str)  # patch | conv
    config.model.template_statistics = config_dict.placeholder(str)  # clip | imagenet
    config.model.editing_depth = config_dict.placeholder(int)  # blocks of the editing transformer
    config.model.editing_drop_path = config_dict.placeholder(float)  # stochastic depth of its last block
    config.model.editing_patches = config_dict.placeholder(int)  # patches read for editing, of all (ours)
    config.model.fusion_depth = config_dict.placeholder(int)  # BERT layers that also read an image (ALBEF: 6)
    config.model.projection_width = config_dict.placeholder(int)  # of the image-caption space
    config.model.mlp_ratio = config_dict.placeholder(float)  # hidden over model width
    config.model.text_dropout = config_dict.placeholder(float)  # of the text encoder (BERT: 0.1)
    config.model.drop_path = config_dict.placeholder(float)  # stochastic depth of the image encoder's last block
    config.model.patch_dropout = config_dict.placeholder(float)  # share of the patches left out in training (ours)
    config.model.temperature = config_dict.placeholder(float)  # start of the learnable contrastive temperature

    config.init = ConfigDict()  # weights a fresh run starts from: folders that `python -m irm_jax.convert` wrote
    config.init.model = ""  # a whole released model ('' = random numbers, also for the other folders)
    config.init.image_encoder = ""  # replaces the image encoder of init.model
    config.init.text_encoder = ""  # needs its own vocabulary, data.vocab
    config.init.template_encoder = ""  # an image encoder's folder will do
    config.init.editing_blocks = False  # the editing transformer starts from the image encoder's last blocks


def _add_objectives(config: ConfigDict) -> None:
    """Adds the keys of the objectives and what they remember."""
    config.loss = ConfigDict()
    config.loss.alpha = 3.0  # weight of the triplet losses (the paper: 3; 1 for VC-Clothes alone)
    config.loss.triplet_unit = "feature"  # feature (paper) | spread: distances relative to the data set's spread
    config.loss.margin = 0.3  # of the triplet losses
    config.loss.rank_weight = 0.1  # of R_i, which orders the two farthest positives
    config.loss.instruction_similarity = "centered"  # centered | raw (the paper)
    config.loss.instruction_mean_momentum = 0.99  # of the mean that centres instruction features
    config.loss.composed_weight = 1.0  # of the composed rows
    config.loss.contrast_weight = 0.0  # of each row's contrast with all rows of the batch (ours)
    config.loss.composed_contrast_weight = 0.0  # of the composed rows' contrast with them (ours)
    config.loss.contrast_temperature = 0.1  # of both contrasts
    config.loss.contrastive_weight = 0.5  # of the caption rows' contrastive loss
    config.loss.matching_weight = 0.0  # of caption and image matching (the paper: 1; needs model.fusion_depth)
    config.loss.masked_weight = 0.0  # of masked language modelling (the paper: 1; needs model.fusion_depth)
    config.loss.replaced_weight = 0.0  # of replaced-token detection (the paper: 0.5; needs model.fusion_depth)

    config.objectives = ConfigDict()  # further registered objectives: name -> table of its options

    config.text_to_image = ConfigDict()  # settings of the caption objectives
    config.text_to_image.momentum_contrast = False  # four directions over momentum keys, not two within the batch
    config.text_to_image.queue_size = 0  # past keys kept for it, at least (0 = none; the paper scale: 65,536)
    config.text_to_image.soft_weight = 0.4  # of the momentum model's soft targets, contrast and masked words
    config.text_to_image.soft_ramp_steps = 500  # steps over which that weight rises from 0 (ALBEF: an epoch)
    config.text_to_image.masked_probability = 0.15  # probability that a word is masked and predicted
    config.text_to_image.replaced_probability = 0.3  # probability that a word is hidden before replacements are drawn
    config.text_to_image.release_mlm_axis = False  # normalise soft labels over positions, as the released code does

    config.momentum = ConfigDict()  # the moving average of the model, which makes keys and soft targets
    config.momentum.decay = 0.995  # of the average, per step
    config.momentum.second_view = False  # give it another augmentation of each image, and another caption

    config.memory_bank = ConfigDict()  # of IRM++; size 0 is IRM
    config.memory_bank.size = 0  # keys kept, at least (0 = no bank; the paper scale: 65,536)
    config.memory_bank.dtype = "float32"  # of its keys and of the caption queue's: float32 | bfloat16
    config.memory_bank.negatives = "all"  # all | task: negatives from all tasks, or from the anchor's task alone
    config.memory_bank.overlaps = ()  # pairs "A:B" of data sets with unlinked people in common: no negatives
    config.memory_bank.temperature = 0.07  # temperature of all similarities
    config.memory_bank.weight = 1.0  # of the bank's loss beside that of IRM
    config.memory_bank.ramp_steps = 500  # steps over which that weight rises from 0
    config.memory_bank.hard_weight = 1.0  # of hard supervision
    config.memory_bank.soft_weight = 0.0  # lambda: soft against hard supervision (0 = hard only)
    config.memory_bank.soft_ramp_steps = 500  # steps over which lambda rises from 0, once the bank is full
    config.memory_bank.neutral_keys = False  # keys stand under the neutral sentence, as a task-free gallery does (ours)
    config.memory_bank.composed_weight = 0.0  # of composed rows, drawn to keys that their instruction describes (ours)


def _add_training(config: ConfigDict) -> None:
    """Adds the keys of the optimizer and the training loop."""
    config.optimizer = ConfigDict()
    config.optimizer.name = "adamw"  # or lion, muon, adafactor, schedule_free, another one of optax with a schedule
    config.optimizer.options = ConfigDict()  # further keyword arguments of optax's function
    config.optimizer.learning_rate = 4e-5  # peak (released joint recipe)
    config.optimizer.warmup_steps = 1000  # linear from 1% to 100%
    config.optimizer.weight_decay = 5e-4  # decoupled and times the learning rate, whatever the optimizer
    config.optimizer.no_decay = ""  # pattern of parameter paths without weight decay ('' = decay all, as released)
    config.optimizer.beta1 = 0.9  # of adamw, schedule_free, and muon's AdamW part; others have theirs in options
    config.optimizer.beta2 = 0.999  # likewise
    config.optimizer.clip_norm = 0.0  # global gradient norm limit (0 = none, as released)
    config.optimizer.frozen = ""  # pattern of parameter paths that do not change in the whole run ('' = all learn)
    config.optimizer.rate_multipliers = ()  # "PATTERN=FACTOR" of the learning rate by path; the first that fits counts
    config.optimizer.layer_decay = 1.0  # factor of the learning rate from each encoder block to the one before it
    config.optimizer.accumulate = 1  # batches per step, each mined on its own

    config.train = ConfigDict()
    config.train.steps = 24_000  # updates of a full training (released joint recipe)
    config.train.log_every = 20  # steps between progress lines and logged metrics
    config.train.evaluate_every = 0  # steps between evaluations (0 = at the end only)
    config.train.hooks = ()  # further hooks: names of irm_jax.training.hooks.HOOKS, or "package.module:Class"

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1000  # steps (0 = only at the end)
    config.checkpoint.keep = 3  # newest ones kept, beside the best
    config.checkpoint.best_metric = "mean_mAP"  # mean over the test sets, or the mAP of TEST_SET or TEST_SET/PROTOCOL
    config.checkpoint.asynchronous = True  # write while training continues

    config.logs = ConfigDict()
    config.logs.writers = ("jsonl", "tensorboard", "console")  # of metrics; also wandb (offline; extra wandb)


def _add_modes(config: ConfigDict) -> None:
    """Adds the keys of evaluation and the other modes."""
    config.evaluation = ConfigDict()
    config.evaluation.sets = ConfigDict()  # name -> evaluation_set(...)
    config.evaluation.batch_size = 128  # images embedded at a time
    config.evaluation.metric = "cosine"  # cosine | euclidean (on embeddings that are not normalised, as released)
    config.evaluation.query_block = 256  # queries scored at a time (0 = as many as fit 256 MiB per device, at most 256)
    config.evaluation.top_k = 10  # ranked ids kept per query
    config.evaluation.taus = (0.5, 0.7, 0.9)  # thresholds of mAP_tau
    config.evaluation.tau_similarity = "attributes"  # attributes | clothes | model
    config.evaluation.task_free = True  # also rank the union of all galleries
    config.evaluation.overlaps = ()  # pairs "A:B" of data sets with unlinked people in common: junk in the union
    config.evaluation.controls = True  # also rank the controls
    config.evaluation.top500 = True  # also report the released AP variant
    config.evaluation.flip = False  # also rank embeddings averaged over image and mirror image
    config.evaluation.rerank = False  # also rank by k-reciprocal distances, k1 20, k2 6, lambda 0.3
    config.evaluation.rescore_top = 128  # images per caption that a trained matching head ranks again
    config.evaluation.two_stage = 0  # images per query that are ranked in search's two stages (its own: 200; 0 = none)
    config.evaluation.open_set = True  # ROC of the best score, for queries with and without a match in the gallery
    config.evaluation.checkpoint = "latest"  # latest | best | a step; for --mode evaluate, embed, explain, export

    config.report = ConfigDict()
    config.report.queries = 4  # rank lists shown per test set and kind
    config.report.rollouts = 3  # attention pictures per test set
    config.report.best_known = ()  # "TEST_SET=mAP SOURCE", such as "mine=0.81 baseline of May": beside the figures

    config.embed = ConfigDict()
    config.embed.images = ""  # folder of images for --mode embed
    config.embed.instruction = ""  # sentence, or path of an instruction image ('' = the neutral sentence)
    config.embed.text_to_image = False  # embed a text-to-image gallery, and the instruction as its query
    config.embed.output = "embeddings.npz"  # in the workdir

    config.export = ConfigDict()  # --mode export
    config.export.formats = EXPORT_FORMATS  # stablehlo (extra export), onnx (extra onnx)
    config.export.functions = EXPORT_FUNCTIONS  # each is one file, weights inside
    config.export.output = "export"  # folder to make, in the workdir

    config.explain = ConfigDict()
    config.explain.query = ""  # picture of a person for --mode explain
    config.explain.instruction = ""  # sentence, or path of an instruction image
    config.explain.test_set = ""  # whose gallery is searched ('' = the first)
    config.explain.points = 1000  # images in the map of the gallery, at most
    config.explain.map = "auto"  # tsne (extra explain) | pca | auto: tsne if it is installed
    config.explain.output = "explain.html"  # in the workdir

    config.compile = ConfigDict()  # --mode compile
    config.compile.steps = COMPILED_STEPS  # what is compiled
    config.compile.machine_code = False  # for TPUs: also make the training step's, which no figure needs
    config.compile.search_batch = False  # find the largest training batch that fits

    config.compare = ConfigDict()
    config.compare.samples = 2000  # bootstrap samples


def completed(saved: Mapping[str, Any]) -> ConfigDict:
    """The configuration that a run saved, by this or an earlier version: keys that were added since have defaults.

    Keys that no longer exist are left out. Raises ConfigError for one that a later version made otherwise.
    """
    try:
        return _completed(get_config(), saved, "")
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the saved configuration cannot be read ({error}): was it written by a later version? Update irm_jax"
        ) from error


def _completed(defaults: ConfigDict, saved: Mapping[str, Any], path: str) -> ConfigDict:
    with defaults.unlocked():
        for key, value in saved.items():
            here = f"{path}.{key}" if path else key
            if here in FREE_TABLES:
                defaults[key] = {
                    name: _completed(FREE_TABLES[here].copy_and_resolve_references(), entry, here)
                    for name, entry in value.items()
                }
            elif here in OPEN_TABLES:
                defaults[key] = dict(value)
            elif isinstance(value, Mapping):
                if key in defaults:
                    _completed(defaults[key], value, here)
            elif key in defaults:
                defaults[key] = tuple(value) if isinstance(value, list) else value
    return defaults


FREE_TABLES = {"data.train": train_unit("", "trad"), "evaluation.sets": evaluation_set("", "trad", ())}
"""Tables whose entry names are the user's. Each entry has the keys of its template."""
OPEN_TABLES = ("optimizer.options", "objectives", "model.image_encoder_options")
"""Tables whose keys are checked by what takes them: an optax function, a registered objective or image encoder."""
