"""Wrong configurations are answered with the key, the cause and the cure, before any device is touched."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from data_pipelines import options
from irm_jax import main
from irm_jax.config import data_sets, keys, load, run_files, train_unit
from irm_jax.config.check import check
from irm_jax.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", run_files.shipped())
def test_shipped_configurations_pass(name):
    config = load(name)
    config.data.vocab, config.init.image_encoder, config.init.text_encoder = "builtin", "", ""  # weights are the user's
    check(config)


def test_a_run_file_is_found_by_name_and_by_path(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(
        "from irm_jax.config import load\ndef get_config(text='7'):\n    config = load('quickstart')\n"
        "    config.train.steps = int(text)\n    return config\n"
    )
    assert load(str(own)).train.steps == 7
    assert load(f"{own}:9").train.steps == 9
    assert load("quickstart").train.steps == load(str(ROOT / "configs/quickstart.py")).train.steps == 250
    with pytest.raises(ConfigError, match=r"no run file of the name 'quikstart'; did you mean --config quickstart\?"):
        load("quikstart")
    with pytest.raises(ConfigError, match=r"no run file elsewhere/quickstart.py; did you mean --config quickstart\?"):
        load("elsewhere/quickstart.py")
    own.write_text("steps = 3\n")
    with pytest.raises(ConfigError, match=r"own.py is not a run file: it has no function get_config"):
        load(str(own))


@pytest.mark.parametrize(
    "saved", [{"model": {"width": "wide"}}, {"model": 3}, {"data": {"train": [1]}}, {"data": {"train": {"a": 1}}}, [1]]
)
def test_a_saved_configuration_of_a_later_version_is_one_message(saved):
    with pytest.raises(ConfigError, match=r"the saved configuration cannot be read .*later version. Update irm_jax"):
        keys.completed(saved)
    assert "novel" not in keys.completed({"novel": 1, "data": {"novel": 2}}).data


def only_captions(config):
    with config.unlocked():
        for name in set(config.data.train) - {"procedural_t2i"}:
            del config.data.train[name]


def no_captions(config):
    with config.unlocked():
        del config.data.train.procedural_t2i


def test_some_data_sets_train_and_all_others_test():
    """Every published test set with all its protocols, in one configuration."""
    config = load(f"transfer:synth_pedes,market1501:{','.join(data_sets.TEST)}")
    check(config)
    assert set(config.data.train) == {"synth_pedes", "market1501"}
    assert set(config.evaluation.sets) == set(data_sets.TEST)
    with pytest.raises(ConfigError, match="no data set 'market'; known are market1501, "):
        load("transfer:market:msmt17")


def test_a_data_set_that_is_left_out_of_the_training_is_still_tested():
    config = load("real_joint_pretrained:cuhk01,cuhk_pedes_part")
    assert set(config.data.train) == {"market1501", "market1501_attributes"}
    assert set(config.evaluation.sets) == {"market1501", "market1501_attributes", "cuhk01", "cuhk_pedes_part"}
    with pytest.raises(ConfigError, match="'cuhk' is not trained on here; the data sets are cuhk01, "):
        load("real_joint_pretrained:cuhk")


CASES = {
    "unknown key": (lambda c: c.optimizer.update({"lerning_rate": 1.0}), r"optimizer.lerning_rate.*learning_rate"),
    "unknown key of a unit": (
        lambda c: c.data.train.procedural_cc.update({"outfit": 2}), r"train.procedural_cc.outfit.*outfits",
    ),
    "wrong type": (lambda c: c.train.update({"steps": "many"}), r"train.steps = 'many'.*must be int"),
    "preset": (lambda c: c.model.update({"preset": "huge"}), r"'huge'; the presets are tiny, small, base"),
    "one image an identity": (
        lambda c: c.data.train.procedural_cc.update({"images_per_identity": 1}), r"needs at least 2 images",
    ),
    "blocks and mesh": (
        lambda c: c.mesh.update({"data": 3}), r"batch_blocks = 4 does not .*batch_blocks=3 --config.data.batch_size=96",
    ),
    "no data": (lambda c: setattr(c.data, "train", ConfigDict()), r"data.train is empty"),
    "tau": (lambda c: c.evaluation.update({"taus": (0.5, 1.5)}), r"taus.*between 0 and 1"),
    "task": (lambda c: c.data.train.procedural_cc.update({"task": "clothes"}), r"'clothes'; the tasks are trad, cc"),
    "protocol": (
        lambda c: c.evaluation.sets.procedural_cc.update({"protocols": ("procedural_ccc",)}),
        r"sets.procedural_cc.protocols: unknown protocol 'procedural_ccc'",
    ),
    "one rule twice": (
        lambda c: c.evaluation.sets.procedural_cc.update({"protocols": ("market", "procedural_cc", "ltcc_general")}),
        r"procedural_cc.protocols: market and ltcc_general are one rule, market; name it once",
    ),
    "protocol with distractors in its name": (
        lambda c: c.evaluation.sets.procedural_cc.update({"protocols": ("market1501+distractors",)}),
        r"unknown protocol 'market1501\+distractors': name the plain one; a test set that has `distractors`",
    ),
    "no test set": (lambda c: setattr(c.evaluation, "sets", ConfigDict()), r"evaluation.sets is empty"),
    "best known figure": (
        lambda c: c.report.update({"best_known": ("procedural_cc=73 a paper",)}),
        r"best_known: 'procedural_cc=73 a paper' must be TEST_SET=mAP SOURCE",
    ),
    "best known figure of no test set": (
        lambda c: c.report.update({"best_known": ("mine=.73 a paper",)}), r"'mine=.73 a paper' must be",
    ),
    "best metric": (
        lambda c: c.checkpoint.update({"best_metric": "mAP"}),
        r"best_metric = 'mAP'; it must be mean_mAP, a test set \(procedural_.*\) or TEST_SET/PROTOCOL",
    ),
    "best metric of a rule that is not ranked": (
        lambda c: c.checkpoint.update({"best_metric": "procedural_cc/same_outfit"}), r"'procedural_cc/same_outfit'; it",
    ),
    "best metric of an unknown rule": (
        lambda c: c.checkpoint.update({"best_metric": "procedural_cc/rank"}), r"best_metric: unknown protocol 'rank'",
    ),
    "share": (lambda c: c.data.train.procedural_cc.update({"share": 0.0}), r"config.data.train: .*share = 0.0 must be"),
    "outfits": (lambda c: c.data.train.procedural_cc.update({"outfits": 9}), r"9 outfits per identity do not fit"),
    "composed": (lambda c: c.data.train.procedural_cc.update({"composed": True}), r"rows with an instruction"),
    "augmentation": (lambda c: c.data.augment.update({"hue": 0.9}), r"train.procedural_cc: augment.hue"),
    "hue of a unit": (lambda c: c.data.train.procedural_vi.update({"hue": 0.9}), r"train.procedural_vi: augment.hue"),
    "people": (lambda c: c.data.procedural.update({"train_people": 1}), r"config.data.procedural: train_people"),
    "vocabulary": (lambda c: c.data.update({"vocab": "/nowhere"}), r"config.data.vocab: .*/nowhere"),
    "mesh": (lambda c: c.mesh.update({"fsdp": 0}), r"mesh.fsdp = 0; it must be a number of devices, or -1"),
    "multiple": (lambda c: c.model.update({"vocab_multiple": 0}), r"vocab_multiple = 0 must be at least 1"),
    "heads": (lambda c: c.model.update({"width": 130}), r"config.model: width 130 is not divisible by image_heads = 4"),
    "image size": (lambda c: c.model.update({"image_size": (100, 50)}), r"config.model: a conv stem needs a stride"),
    "bank without rows for it": (
        lambda c: (c.memory_bank.update({"size": 8}), only_captions(c)), r"memory_bank.size = 8: .*no training set has",
    ),
    "negatives": (lambda c: c.memory_bank.update({"negatives": "some"}), r"negatives = 'some'; it must be all or task"),
    "key type": (lambda c: c.memory_bank.update({"dtype": "float16"}), r"memory_bank.dtype = 'float16'"),
    "temperature": (lambda c: c.memory_bank.update({"temperature": 0.0}), r"memory_bank.temperature = 0.0 must be pos"),
    "overlap": (lambda c: c.memory_bank.update({"overlaps": ("a",)}), r"overlaps: 'a' is no pair of data sets"),
    "overlap of one set": (lambda c: c.evaluation.update({"overlaps": ("a:a",)}), r"evaluation.overlaps: 'a:a' is one"),
    "overlap of a set that is not tested": (
        lambda c: c.evaluation.update({"overlaps": ("procedural_cc:a",)}), r"overlaps names a, which no test set",
    ),
    "empty data folder": (lambda c: c.data.update({"dir": ""}), r"config.data.dir is empty; name the folder"),
    "max pixels": (lambda c: c.data.update({"max_pixels": 0}), r"config.data.max_pixels = 0; it must lie between 1"),
    "leaks": (lambda c: c.data.update({"leaks": "fix"}), r"data.leaks = 'fix'; it must be refuse or warn"),
    "width": (lambda c: c.model.update({"width": 0}), r"config.model.width = 0 must be at least 1"),
    "no head": (lambda c: c.model.update({"image_heads": 0}), r"config.model.image_heads = 0 must be at least 1"),
    "size of an image": (lambda c: c.model.update({"image_size": (128,)}), r"image_size = \(128,\); it must be \("),
    "drop path": (lambda c: c.model.update({"drop_path": 1.0}), r"drop_path = 1.0 must be at least 0 and below 1"),
    "editing patches": (
        lambda c: c.model.update({"editing_patches": 33}), r"editing_patches = 33; an image has 32 patches",
    ),
    "no editing patch": (lambda c: c.model.update({"editing_patches": 0}), r"editing_patches = 0 must be at least 1"),
    "patch dropout": (lambda c: c.model.update({"patch_dropout": 1.0}), r"patch_dropout = 1.0 must be at least 0"),
    "beta": (lambda c: c.optimizer.update({"beta1": 1.0}), r"optimizer.beta1 = 1.0 must be at least 0 and below 1"),
    "weight of a loss": (lambda c: c.loss.update({"alpha": -1.0}), r"config.loss.alpha = -1.0 must be at least 0"),
    "tau that is no number": (lambda c: c.evaluation.update({"taus": ("a",)}), r"taus = \('a',\): 'a' is of type str"),
    "two augmentations of one data set": (
        lambda c: c.data.train.update(
            {"more": train_unit("procedural_trad", "t2i"), "procedural_trad": {"hue": 0.1}}
        ),
        r"config.data.train: procedural_trad and another entry read procedural_trad with different hue",
    ),
    "decay": (lambda c: c.momentum.update({"decay": 1.0}), r"momentum.decay = 1.0 must be at least 0 and below 1"),
    "profile": (lambda c: c.update({"profile": "20:10"}), r"config.profile: '20:10' is not START:STOP"),
    "compiled steps": (lambda c: c.compile.update({"steps": ("train", "query")}), r"compile.steps = .*train, embed"),
    "search": (lambda c: c.compile.update({"steps": ("embed",), "search_batch": True}), r"add 'train' to config.comp"),
    "matching without its layers": (
        lambda c: c.loss.update({"matching_weight": 1.0}), r"matching_weight = 1.0 needs .*set config.model.fusion_dep",
    ),
    "a queue nobody reads": (
        lambda c: c.text_to_image.update({"queue_size": 8}), r"queue_size = 8, but .*momentum_contrast=True",
    ),
    "caption objectives without captions": (
        lambda c: (c.text_to_image.update({"momentum_contrast": True}), no_captions(c)),
        r"momentum_contrast is on, but no training set has captions",
    ),
    "probability": (
        lambda c: c.text_to_image.update({"masked_probability": 1.5}), r"masked_probability = 1.5 must lie between",
    ),
    "pattern": (lambda c: c.optimizer.update({"no_decay": "("}), r"no_decay = '\(' is no regular expression"),
    "prefetch": (lambda c: c.data.update({"prefetch": 0}), r"data.prefetch = 0 must be at least 1"),
    "query block": (lambda c: c.evaluation.update({"query_block": -3}), r"query_block = -3 must be at least 0"),
    "negative seed": (lambda c: c.update({"seed": -1}), r"config.seed = -1 must be a whole number from 0"),
    "seed that the devices would cut": (lambda c: c.update({"seed": 2**32}), r"config.seed = 4294967296 must be"),
    "batch by a slip": (lambda c: c.data.update({"batch_size": 10**9}), r"batch_size = 1000000000 must be at most"),
    "batch of parts of people": (lambda c: c.data.update({"batch_size": 50}), r"batch_size: batch_size = 50 cannot be"),
    "no export format": (lambda c: c.export.update({"formats": ()}), r"export.formats = \(\); it must name .*onnx"),
    "an export of what": (lambda c: c.export.update({"functions": ("x",)}), r"export.functions = .*embed_sentence"),
    "batch as a float": (lambda c: c.data.update({"batch_size": 1e10}), r"batch_size = 10000000000.0 is of type float"),
    "rate without end": (
        lambda c: c.optimizer.update({"learning_rate": float("inf")}), r"learning_rate = inf; it must be a finite",
    ),
    "checkpoint": (lambda c: c.evaluation.update({"checkpoint": "newest"}), r"checkpoint = 'newest'; it must be"),
    "checkpoint of another digit": (lambda c: c.evaluation.update({"checkpoint": "\u00b2"}), r"it must be latest"),
    "overlap of a set that is not trained on": (
        lambda c: c.memory_bank.update({"size": 8, "overlaps": ("procedural_cc:a",)}),
        r"memory_bank.overlaps names a, which is not trained on; the training sets are procedural_cc, ",
    ),
    **{
        f"growth {', '.join(growth)}": (lambda c, growth=growth: c.data.update({"growth": growth}), message)
        for growth, message in (
            (("half",), r"config.data.growth: 'half' is no STEPS=SHARE, such as '600=0.75'"),
            (("0=0.5", "5=full"), r"config.data.growth: '5=full' is no STEPS=SHARE"),
            (("3=0.5", "5=1"), r"the steps must rise from 0"),
            (("0=0.5", "9=0.75", "5=1"), r"the steps must rise from 0"),
            (("0=0", "5=1"), r"the shares must be above 0 and rise to 1"),
            (("0=0.5", "5=1.5"), r"the shares must be above 0 and rise to 1"),
            (("0=0.75", "5=0.5", "9=1"), r"the shares must be above 0 and rise to 1"),
            (("0=0.5", "5=0.75"), r"the shares must be above 0 and rise to 1"),
            (("0=nan", "5=1"), r"the shares must be above 0 and rise to 1"),
            (("0=0.5", "1000000=1"), r"no step has images of the full size.* must be more than 1000000"),
            (("0=0.1", "5=1"), r"growth: a share of 0.1 of image_size = \(128, 64\) is less than one patch"),
        )
    },
    "warm-up": (lambda c: c.optimizer.update({"warmup_steps": 10**6}), r"warmup_steps = 1000000 is longer than"),
    "deleted block": (lambda c: c.__delitem__("report"), r"config.report is missing: a run file sets"),
    "deleted key": (lambda c: c.model.__delitem__("width"), r"config.model.width is missing"),
    "a number for a table": (lambda c: setattr(c.data, "train", 3), r"config.data.train is a table of keys, not 3"),
    "numbers for texts": (lambda c: c.train.update({"hooks": (1,)}), r"train.hooks = \(1,\): 1 is of type int"),
    "three numbers": (
        lambda c: c.data.augment.update({"erase_area": (0.1, 0.2, 0.3)}), r"erase_area = .*; it must be two numbers",
    ),
    "no file": (lambda c: c.embed.update({"output": ""}), r"embed.output is empty"),
    "weights": (
        lambda c: [unit.update({"loss_weight": 0.0}) for unit in c.data.train.values()],
        r"loss_weight of every data set",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named(case):
    change, message = CASES[case]
    config = load("procedural")
    with config.unlocked(), config.ignore_type():
        change(config)
    with pytest.raises(ConfigError, match=message):
        check(config)


def test_every_key_has_a_comment():
    """irm_jax/config/keys.py is the reference of all keys: each assignment says what it is."""
    lines = Path(keys.__file__).read_text().splitlines()
    assigned = [line for line in lines if re.match(r"    config\.[\w.]+ = (?!ConfigDict\(\))", line)]
    assert len(assigned) > 60
    assert [line for line in assigned if "  # " not in line] == []


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "GLIBC_TUNABLES": ""},  # the command does not restart itself
    )  # fmt: skip


def test_command_line_names_the_nearest_key():
    result = run("-m", "irm_jax.main", "--config", "quickstart", "--config.optimizer.lerning_rate=1")
    assert result.returncode == 2
    assert result.stdout + result.stderr == (
        "unknown configuration key config.optimizer.lerning_rate; did you mean config.optimizer.learning_rate?\n"
    )


def test_help_is_one_screen_with_every_mode():
    result = run("-m", "irm_jax.main", "--help")
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) <= 32
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert re.findall(r"^  (\w+) +[a-z]", result.stdout, re.MULTILINE)[: len(main.MODES)] == list(main.MODES)


def test_keys_are_listed():
    result = run("-m", "irm_jax.main", "--keys", "memory_bank.s")
    assert result.returncode == 0
    assert [re.split(r"  +", line)[:3] for line in result.stdout.splitlines()] == [
        ["memory_bank.size", "int", "0"], ["memory_bank.soft_weight", "float", "0.0"],
        ["memory_bank.soft_ramp_steps", "int", "500"],
    ]  # fmt: skip
    assert "keys kept, at least" in result.stdout


MISTAKES = {
    "no configuration": ((), "--config is missing: name a run file, such as --config quickstart"),
    "run file": (("--config", "quikstart"), r"no run file of the name 'quikstart'; did you mean --config quickstart\?"),
    "keys": (("--keys", "memory_bnk"), r"has 'memory_bnk' in its name or description; did you mean memory_bank"),
    "value": (("--config=configs/quickstart.py", "--config.train.steps=many"), r"--config.train.steps=many"),
    "setting": (("--config=quickstart", "--config.train.steps=0"), r"config.train.steps = 0 must be at least 1"),
    "mode": (("--config", "quickstart", "--mode", "trian"), r"--mode=trian: .*; did you mean train\?"),
    "flag": (
        ("--config", "quickstart", "--workdirs=a"),
        r"Unknown command line flag .* Did you mean: workdir",
    ),
    "key without a configuration": (("--config.train.steps=3",), r"config"),
    "argument": (("--config", "quickstart", "train"), r"unexpected argument 'train'"),
    "data set": (
        (
            "--config",
            "transfer:market",
        ),
        r"no data set 'market'; known are market1501",
    ),
    "topology": (("--config", "quickstart", "--mode=compile", "--topology=v9:2x2"), r"v9"),
    "runs": (("--mode", "compare", "a"), r"--mode compare needs two run folders, not 1"),
    "folders": (("--mode", "compare", "/nowhere/a", "/nowhere/b"), r"no per-query results in /nowhere/a/per_query"),
}
SEVERAL_COMMANDS = """
import json, os, sys, tempfile
from absl import app
from irm_jax import main
from irm_jax.config import check
results = {}
for name, arguments in json.loads(sys.argv[1]).items():
    with tempfile.TemporaryFile("w+") as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            sys.argv = ["irm_jax.main", *arguments]
            app.run(main.main, flags_parser=main.parse)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        results[name] = (status, said.read())
print(json.dumps(results))
"""
"""Runs each command in a fork of one process, which has imported everything once."""


@pytest.fixture(scope="module")
def answers():
    """Case -> [exit status, what was printed]."""
    done = run("-c", SEVERAL_COMMANDS, json.dumps({name: arguments for name, (arguments, _) in MISTAKES.items()}))
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_on_the_command_line_is_one_message_and_status_2(case, answers):
    status, said = answers[case]
    assert status == 2, said
    assert re.search(MISTAKES[case][1], said)
    assert "Traceback" not in said
    assert len(said.splitlines()) == 1


def test_a_saved_configuration_is_completed_with_what_was_added_since():
    config = load("transfer:market1501:llcm")
    with config.unlocked():
        config.optimizer.options = {"nesterov": True}
    saved = json.loads(json.dumps(config.to_dict()))
    assert keys.completed(saved).to_dict() == config.to_dict()
    del saved["logs"], saved["train"]["hooks"], saved["data"]["train"]["market1501"]["hue"]
    saved["train"]["epochs"] = saved["gone"] = 3
    assert keys.completed(saved).to_dict() == config.to_dict()


def test_a_caption_is_drawn_once_per_person_unless_one_says_otherwise() -> None:
    """Also where a task is changed after its entry was made, as on the command line."""
    config = keys.get_config()
    with config.unlocked():
        config.data.train.x = keys.train_unit("x", "trad")
    for task, images in {"trad": 4, "cc": 4, "ctcc": 4, "vi": 4, "t2i": 1, "li": 4}.items():
        config.data.train.x.task = task
        assert options.units_of(config)[0].images_per_identity == images
    config.data.train.x.images_per_identity = 2
    assert options.units_of(config)[0].images_per_identity == 2
