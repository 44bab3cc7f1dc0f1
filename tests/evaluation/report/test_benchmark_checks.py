"""Each fail condition of the benchmark fires on results that break it, and on those alone."""

import copy

import pytest

from irm_jax.evaluation.report.benchmark_checks import benchmark_checks


def good():
    """Results that every check passes."""
    names = [f"procedural_{task}" for task in ("trad", "cc", "ctcc", "vi", "t2i", "li")]
    table = lambda value: {name: {"mAP": value} for name in names}  # noqa: E731
    protocols = table(0.6) | {
        f"procedural_{task}+identity": {"mAP": 0.6, "mAP_tau": {"0.5": 0.6, "0.9": 0.5}} for task in ("ctcc", "li")
    }
    baselines = {
        "random": table(0.02), "color_histogram": table(0.021), "image_only": table(0.17),
        "instruction_only": table(0.2), "oracle": table(1.0) | {"procedural_cc+identity": {"mAP": 0.5}},
    }  # fmt: skip
    return {"protocols": protocols, "baselines": baselines}


def failed(results):
    return [check.name for check in benchmark_checks(results) if not check.passed]


def test_a_sound_benchmark_passes():
    checks = benchmark_checks(good())
    assert len(checks) == 2 + 2 * 4 + 6
    assert not failed(good())
    ratio = next(check for check in checks if check.name == "procedural_cc: histogram over random")
    assert ratio.value == pytest.approx(1.05)
    assert (ratio.limit, ratio.bound, ratio.unit) == (1.3, "at most", "ratio")


@pytest.mark.parametrize(
    ("path", "value", "names"),
    [
        (("baselines", "color_histogram", "procedural_cc"), 0.027, ["procedural_cc: histogram over random"]),
        (("baselines", "color_histogram", "procedural_vi"), 0.027, ["procedural_vi: histogram over random"]),
        (("baselines", "color_histogram", "procedural_trad"), 0.2, []),
        (("baselines", "image_only", "procedural_ctcc"), 0.36, ["procedural_ctcc: image only"]),
        (("baselines", "instruction_only", "procedural_li"), 0.36, ["procedural_li: instruction only"]),
        (("protocols", "procedural_li"), 0.29, ["procedural_li: model over the better single input"]),
        (("baselines", "oracle", "procedural_t2i"), 0.98, ["procedural_t2i: oracle"]),
    ],
)
def test_a_broken_condition_is_found(path, value, names):
    results = copy.deepcopy(good())
    table = results
    for key in path:
        table = table[key]
    table["mAP"] = value
    assert failed(results) == names


def test_curves_over_tau_that_coincide_are_found():
    results = good()
    results["protocols"]["procedural_ctcc+identity"]["mAP_tau"] = {"0.5": 0.6, "0.7": 0.61, "0.9": None}
    assert failed(results) == ["procedural_ctcc: spread of mAP_tau"]


def test_without_controls_nothing_is_judged():
    results = {"protocols": {"market1501": {"mAP": 0.3, "mAP_tau": None}}, "baselines": {}}
    assert benchmark_checks(results) == []
