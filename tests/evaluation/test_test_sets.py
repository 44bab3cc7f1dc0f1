"""Test sets of every shape, from shards to figures, with a stand-in for the model that sees mean colours."""

from __future__ import annotations

import dataclasses
import types
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from data_pipelines import tasks
from data_pipelines.dataset import schema
from data_pipelines.dataset.reader import open_dataset
from data_pipelines.dataset.writer import BuildOptions, DatasetSpec, write_dataset
from data_pipelines.errors import DatasetError
from data_pipelines.procedural.benchmark import Benchmark
from irm_jax.evaluation import open_set
from irm_jax.evaluation.evaluator import Evaluation, Evaluator, Options, Outcome
from irm_jax.evaluation.figures import Figure, label, select
from irm_jax.evaluation.protocols import MARKET
from irm_jax.evaluation.ranking.metrics import summarize
from irm_jax.evaluation.ranking.rerank import KReciprocal
from irm_jax.evaluation.ranking.scores import EmbeddingScores, Gallery
from irm_jax.evaluation.records import Records
from irm_jax.evaluation.test_sets import Entry, Loader, PeopleSpace, TestSet, with_instruction_outfits

PEOPLE = 5


def picture(seed: int, person: int) -> bytes:
    """PNG of 8 x 4 pixels: the person's colour on the left, that of the picture on the right."""
    left = np.random.default_rng(person).integers(0, 256, 3)
    random = np.random.default_rng(1000 + seed)
    image = np.empty((8, 4, 3), np.uint8)
    image[:, :2] = np.clip(left + random.integers(-60, 60, 3), 0, 255)
    image[:, 2:] = random.integers(0, 256, 3)
    return cv2.imencode(".png", image)[1].tobytes()


def load(item: tuple[Any, ...]) -> schema.Record:
    namespace, person, camera, infrared, seed, sentence, worn, asked = (*item, -1, -1)[:8]
    name = f"{person:04d}"
    return schema.Record(
        image=picture(seed, person), file=f"cam{camera}/{name}/{seed:04d}.png", person=f"{namespace}/{name}",
        camera=camera, modality=int(infrared), sentences=(sentence,) if sentence else (), clothes=worn,
        instruction_clothes=asked,
    )  # fmt: skip


def write(
    folder: Path, name: str, task: str, namespace: str, splits: dict[str, list[tuple]], **source: list[str]
) -> None:
    people = {load(item).person for items in splits.values() for item in items}
    spec = DatasetSpec(name, "1.0.0", task, namespace, sorted(people), splits, load, source)
    write_dataset(folder, spec, BuildOptions(workers=1, progress=False))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`night` (LLCM's shape: one split), `street` (Market-1501's), its distractors `crowd`, `words` (CUHK-PEDES's),
    `shop` (Real2's), whose instructions tell outfits but no attributes, and whose person 2 owns one outfit only.

    In the gallery of `words` stand people of `street`, and its pictures 100, with which a query asks, and 200, which
    its own gallery holds.
    """
    out = tmp_path_factory.mktemp("sets")
    night = [
        ("night", person, camera, infrared, 10 * person + 4 * camera + 2 * infrared + copy, "")
        for person in range(PEOPLE) for camera in range(2) for infrared in (False, True) for copy in range(2)
    ]  # fmt: skip
    write(out, "night", "vi", "night", {"test": night[::-1]})  # in no particular order
    query = [("street", p, 0, False, 100 + p, "", 0) for p in range(PEOPLE)]
    gallery = [("street", p, c, False, 200 + 10 * p + c, "", 0) for p in range(PEOPLE) for c in range(3)]
    write(out, "street", "trad", "street", {"query": query, "gallery": gallery})
    write(out, "crowd", "trad", "crowd", {"gallery": [("crowd", 0, 1, False, 300 + i, "") for i in range(7)]})
    words = [("street", p, -2, False, seed, "") for p, seed in ((0, 400), (1, 401), (2, 402), (0, 100), (0, 200))]
    captions = [("street", p, -1, False, 500 + p, f"person {p}") for p in range(3)]
    write(out, "words", "t2i", "words", {"query": captions, "gallery": words})
    racks = [(p, outfit) for p in range(3) for outfit in range(2 if p < 2 else 1)]
    wanted = [("shop", p, 0, False, 700 + p, f"outfit 0 of {p}", -1, 0) for p in range(3)]
    worn = [("shop", p, 1, False, 710 + 2 * p + o, f"outfit {o} of {p}", o, o) for p, o in racks]
    write(out, "shop", "li", "shop", {"query": wanted, "gallery": worn})
    return out


def test_an_outfit_that_is_asked_for_is_known_by_the_pictures_that_show_it():
    def side(identity: list[int], clothes: list[int], shown: Any, asked: list[int], named: Any) -> Records:
        return Records.of(
            identity=identity, clothes=clothes, attributes=shown, instruction_clothes=asked,
            instruction_attributes=named,
        )  # fmt: skip

    # Columns: person, outfit worn, what the picture shows, outfit asked for, what the instruction names.
    query = side(
        [7, 7, 8, 8], [0, 0, -1, -1], [[1, 2, 3]] * 2 + [[-1] * 3] * 2, [1, 2, 1, -1],
        [[5, -1, -1], [5, -1, -1], [-1, -1, 6], [4, -1, -1]],
    )  # fmt: skip
    gallery = side(
        [7, 7, 8, 9], [1, 1, 1, -1], [[5, 6, 2], [5, 6, 3], [8, -1, 7], [9, 9, 9]], [1, 0, 1, -1],
        [[-1, 6, -1], [1, -1, -1], [-1] * 3, [-1] * 3],
    )  # fmt: skip
    query, gallery = with_instruction_outfits(query, gallery)
    # The two pictures of person 7's outfit 1 disagree in the last slot; nobody shows that person's outfit 2; what an
    # instruction names stands, whatever the picture shows; another person's outfit 1 is another outfit.
    assert query.instruction_outfit.tolist() == [[5, 6, -1], [5, -1, -1], [8, -1, 6], [4, -1, -1]]
    assert gallery.instruction_outfit.tolist() == [[5, 6, -1], [1, 2, 3], [8, -1, 7], [-1, -1, -1]]


class Eyes:
    """What the evaluator asks of an EmbeddingModel; an embedding is the mean colour of each half of the picture."""

    def __init__(self) -> None:
        self.model = types.SimpleNamespace(config=types.SimpleNamespace(image_size=(8, 4)))
        self.batch_size, self.mesh = 8, Mesh(np.array(jax.devices()[:1]), ("data",))
        self.batches = 0

    def between_batches(self) -> None:
        return None

    def local_rows(self) -> list[int]:
        return list(range(self.batch_size))

    def instructions(self, instructions: Any) -> None:
        return None

    def image_features(self, images: np.ndarray) -> np.ndarray:
        self.batches += 1
        halves = images.reshape(len(images), 8, 2, 2, 3).mean(axis=(1, 3)) - 128
        return halves.reshape(len(images), 6).astype(np.float32)

    def edit(self, features: np.ndarray, table: Any, index: np.ndarray) -> Any:
        return types.SimpleNamespace(embedding=features, instruction=features[:, :2])

    def project_images(self, features: np.ndarray) -> np.ndarray:
        return features[:, :3]

    def project_sentences(self, sentences: list[str]) -> np.ndarray:
        people = [int(sentence.split()[1]) for sentence in sentences]
        return np.stack([np.random.default_rng(p).integers(0, 256, 3) - 128 for p in people]).astype(np.float32)


def load_sets(folder: Path, entries: list[tuple]) -> list[TestSet]:
    loader = Loader()
    opened = {name: open_dataset(folder, name) for name in ("night", "street", "crowd", "words", "shop")}
    for name, task, protocols, query, gallery, distractors in entries:
        data_set = name.partition("_")[0]
        loader.load(
            Entry(name, tasks.task(task), protocols), (opened[data_set], query), (opened[data_set], gallery),
            [(opened["crowd"], split) for split in distractors],
        )  # fmt: skip
    return loader.sets


ENTRIES = [
    ("night", "vi", ("llcm_v2n", "llcm_n2v", "llcm_v2n_released"), "test", "test", ()),
    ("street", "trad", ("market",), "query", "gallery", ("gallery",)),
    ("words", "t2i", ("identity",), "query", "gallery", ()),
]
OPTIONS = Options(query_block=8, top_k=3, taus=(0.5,), flip=True, rerank=True, threads=1)
PLAIN = dataclasses.replace(
    OPTIONS, controls=False, flip=False, rerank=False, top500=False, open_set=False, task_free=False
)
FREE = {"setting": "task_free", "gallery": "union", "gallery_instruction": "neutral"}


def outcome(evaluation: Evaluation, test_set: str, protocol: str, **where: Any) -> Outcome:
    """The plain ranking of a test set under a protocol, or that of some other fields."""
    fields = {"setting": "task_specific", "distractors": False, "scoring": (), "cut": None, **where}
    figures = select([found.figure for found in evaluation.outcomes], test_set=test_set, protocol=protocol, **fields)
    assert len(figures) == 1
    return next(found for found in evaluation.outcomes if found.figure is figures[0])


def figure(evaluation: Evaluation, test_set: str, protocol: str, **where: Any) -> Figure:
    return outcome(evaluation, test_set, protocol, **where).figure


@pytest.fixture(scope="module")
def evaluated(folder: Path) -> tuple[Evaluation, Eyes]:
    eyes = Eyes()
    return Evaluator(eyes, load_sets(folder, ENTRIES), OPTIONS).run(), eyes


def features(test: TestSet, flip: bool) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of both sides, read and averaged one picture at a time."""
    sides = []
    for parts in ([test.query], test.parts):
        rows = []
        for part in parts:
            reader = part.dataset.reader(part.split, ("image",))
            for record in range(len(part)):
                image = cv2.imdecode(np.frombuffer(reader[record]["image"], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
                own, mirror = (Eyes().image_features(shown[None])[0] for shown in (image, image[:, ::-1]))
                rows.append((own + mirror) / 2 if flip else own)
        sides.append(np.stack(rows))
    return sides[0], sides[1]


def test_each_picture_is_embedded_once(evaluated):
    """Whatever the protocols, trials and settings; its mirror once more; for the controls one batch of grey ones."""
    batches = sum(-(-pictures // 8) for pictures in (40, 5, 15, 7, 5))  # night; street's two splits; crowd; words
    assert evaluated[1].batches == 2 * batches + 1


def test_every_ranking_has_its_row(evaluated):
    evaluation = evaluated[0]
    street = ["street/market{}", "street/market (with distractors{})"]
    images = ["night/llcm_v2n{}", "night/llcm_n2v{}", "night/llcm_v2n_released{}", *street]
    expected = set()
    for variant in ("", "flip", "rerank", "flip + rerank"):
        for name in images:
            words = variant if "(" not in name else f", {variant}"
            expected.add(name.format(f" ({variant})" if "(" not in name and variant else words if variant else ""))
    expected |= {"words/identity", "words/identity (flip)"}  # captions are not re-ranked
    expected |= {"night/llcm_v2n (top 500)", "street/market (top 500)"}
    free = ["night/llcm_v2n", "night/llcm_n2v", "street/market", "words/identity"]
    expected |= {f"{name} (task-free)" for name in free} | {"street/market (task-free, with distractors)"}
    expected |= {f"{name} (task-free, own gallery)" for name in ("night/llcm_v2n", "street/market", "words/identity")}
    own = "(task-free, gallery under its own instructions)"
    expected |= {f"{name} {own}" for name in ("night/llcm_v2n", "street/market")}
    assert {label(found.figure) for found in evaluation.outcomes} == expected
    assert len(evaluation.outcomes) == len(expected)
    sizes = [(label(f), f.queries, f.gallery_size) for f in evaluation.figures if f.plain and f.setting != "task_free"]
    assert sizes == [
        ("night/llcm_v2n", 4 * PEOPLE, 2 * PEOPLE), ("night/llcm_n2v", 4 * PEOPLE, 2 * PEOPLE),
        ("night/llcm_v2n_released", 2 * PEOPLE, 4 * PEOPLE), ("street/market", 5, 15), ("words/identity", 3, 5),
    ]  # fmt: skip
    assert figure(evaluation, "street", "market", distractors=True).gallery_size == 22
    assert [figure(evaluation, "night", name).trials for name in ("llcm_v2n", "llcm_n2v", "llcm_v2n_released")] == [
        10
    ] * 3
    assert [found.test_set for found in evaluation.open_set] == ["night", "street", "words"]
    assert len({found.key for found in evaluation.figures}) == len(evaluation.figures)


def test_a_gallery_is_placed_once_per_embedding(folder, monkeypatch):
    """Of three rules of one gallery, one cut and the open set: the whole gallery, and that without people."""
    placed = []
    original = Gallery.__init__
    monkeypatch.setattr(Gallery, "__init__", lambda self, *args: placed.append(len(args[0])) or original(self, *args))
    entries = [("street", "trad", ("market", "identity", "described_outfit"), "query", "gallery", ())]
    options = dataclasses.replace(PLAIN, top500=True, open_set=True)
    Evaluator(Eyes(), load_sets(folder, entries), options).run()
    assert placed == [15, 9]


def test_two_data_sets_of_one_task_stand_side_by_side(folder):
    entries = [(name, "trad", ("market",), "query", "gallery", ()) for name in ("street_a", "street_b")]
    evaluation = Evaluator(Eyes(), load_sets(folder, entries), PLAIN).run()
    assert [label(found) for found in evaluation.figures] == ["street_a/market", "street_b/market"]
    assert evaluation.figures[0].mAP == evaluation.figures[1].mAP > 0
    rules = ("requested_outfit", "identity")  # of li: once a rule belonged to one set of own sentences
    entries = [(name, "li", rules, "query", "gallery", ()) for name in ("shop_a", "shop_b")]
    evaluation = Evaluator(Eyes(), load_sets(folder, entries), PLAIN).run()
    assert [label(found) for found in evaluation.figures] == [f"{e[0]}/{rule}" for e in entries for rule in rules]


@pytest.mark.parametrize("scoring", [("flip",), ("rerank",), ("flip", "rerank"), ()])
@pytest.mark.parametrize(("name", "protocol"), [("night", "llcm_n2v"), ("street", "market")])
def test_flips_and_reranking_are_those_of_single_pictures(evaluated, name, protocol, scoring):
    test = next(test for test in evaluated[0].sets if test.name == name)
    case = next(case for case in test.cases if case.protocol.name == protocol)
    kind = KReciprocal if "rerank" in scoring else EmbeddingScores
    scores = kind(*features(test, "flip" in scoring), "cosine", evaluated[1].mesh)
    found = figure(evaluated[0], name, protocol, scoring=scoring)
    assert found.mAP == pytest.approx(summarize(case.rank(scores, OPTIONS.ranking()))["mAP"])


def test_the_union_takes_every_gallery_picture_once(evaluated):
    """Task-free: 40 of night, 15 of street, 4 more of words; distractors where they are asked for."""
    evaluation = evaluated[0]
    sizes = {
        (name, rule, distractors): figure(evaluation, name, rule, distractors=distractors, **FREE).gallery_size
        for name, rule, distractors in (
            ("street", "market", False), ("words", "identity", False), ("night", "llcm_v2n", False),
            ("street", "market", True),
        )
    }  # fmt: skip
    # Of its own source night/llcm_v2n searches the infrared images only.
    assert list(sizes.values()) == [40 + 15 + 4, 40 + 15 + 4, 20 + 15 + 4, 40 + 15 + 4 + 7]
    ranked = outcome(evaluation, "street", "market", **FREE)
    # Person 0 of street: three cameras, its own out, one more in words, and the query's own file there, which is junk.
    assert ranked.ranking.num_positives.tolist() == [3, 3, 3, 2, 2]
    own = np.flatnonzero(ranked.gallery.content == ranked.query.content[0])
    assert len(own) == 1
    assert own[0] not in ranked.ranking.top_ids[0]
    related = ranked.case.protocol.relate(*ranked.pair(0, own))
    assert [mask.tolist() for mask in related] == [[False], [True]]
    # For the caption the same picture is an answer.
    assert outcome(evaluation, "words", "identity", **FREE).ranking.num_positives.tolist() == [5, 4, 4]
    # Cameras of one number in two sources are two cameras: nothing of street is junk for night.
    cameras = {source: set(ranked.gallery.camera[ranked.gallery.source == source].tolist()) for source in range(4)}
    assert {source: len(numbers) for source, numbers in cameras.items()} == {0: 2, 1: 3, 2: 0, 3: 1}
    assert cameras[3] == {-1}
    assert not cameras[0] & cameras[1]


def test_people_known_to_overlap_but_not_linked_are_junk_in_the_union(folder):
    """Nobody of night and street is linked; words shows street's people 0, 1 and 2 under their own names.

    Street's queries lose night's 40 pictures, and nothing of words. Night's lose street's 15, of which words has one
    too: that copy is of a set that night does not overlap with, so it stays. The captions of words lose the pictures of
    street's people 3 and 4, who may be one of those that they describe: 6.
    """
    plain = dataclasses.replace(PLAIN, task_free=True)
    found = {}
    for name, pairs in (("none", ()), ("all", (("street", "night"), ("words", "street")))):
        evaluator = Evaluator(Eyes(), load_sets(folder, ENTRIES), dataclasses.replace(plain, overlaps=pairs))
        found[name] = evaluator.run()
    tests = (("street", "market"), ("night", "llcm_v2n"), ("words", "identity"))
    sizes = {}
    for name in found:
        rows = [figure(found[name], *test, **FREE) for test in tests]
        sizes[name] = [(row.gallery_size, row.overlap_junk) for row in rows]
    assert sizes == {"none": [(59, 0), (20 + 15 + 4, 0), (59, 0)], "all": [(19, 40), (20 + 5, 14), (53, 6)]}
    assert "40 images of people who may be the same" in figure(found["all"], "street", "market", **FREE).description
    for test in tests:  # what may be right for a query is known to be: no positive is lost
        before, after = (outcome(found[key], *test, **FREE).ranking for key in ("none", "all"))
        assert before.num_positives.tolist() == after.num_positives.tolist()
        assert (after.ap >= before.ap - 1e-12).all()
    ranked = outcome(found["all"], "words", "identity", **FREE)
    shown = {found["all"].sets[number].name for number in ranked.source[:, 0].tolist()}
    assert shown == {"night", "street", "words"}
    # The domain control is the own gallery alone.
    assert figure(found["all"], "street", "market", **{**FREE, "gallery": "own"}).gallery_size == 15


def test_rankings_know_their_records(evaluated):
    evaluation = evaluated[0]
    ranked = outcome(evaluation, "night", "llcm_n2v")
    night = evaluation.sets[0]
    np.testing.assert_array_equal(night.query.index.content[ranked.record], ranked.query.content)
    assert (night.query.index.modality[ranked.record] == schema.INFRARED).all()
    for ranked in (
        outcome(evaluation, "night", "llcm_v2n"), outcome(evaluation, "street", "market", distractors=True),
        outcome(evaluation, "words", "identity", **{**FREE, "gallery": "own"}),
    ):  # fmt: skip
        for (number, record), content in zip(ranked.source.tolist(), ranked.gallery.content, strict=True):
            part, place = evaluation.sets[number].gallery_record(record)
            assert part.index.content[place] == content
    with pytest.raises(IndexError, match="street"):
        evaluation.sets[1].gallery_record(22)


def test_the_open_set_leaves_people_out(evaluated):
    """Two of five people are taken out of the gallery; the figures are those of cosines counted here, one by one."""
    test = evaluated[0].sets[1]
    query, gallery = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in features(test, flip=False))
    asking, shown = test.query.records, test.gallery_records
    away = open_set.people_left_out(asking.identity, OPTIONS.seed)
    best, right = [], []
    for q in range(PEOPLE):
        searched = [
            g for g in range(15)  # the rest are distractors
            if shown.identity[g] not in asking.identity[away]
            and (shown.identity[g], shown.camera[g]) != (asking.identity[q], asking.camera[q])
        ]  # fmt: skip
        scores = gallery[searched] @ query[q]
        best.append(scores.max())
        right.append(shown.identity[searched[int(scores.argmax())]] == asking.identity[q])
    best, right = np.array(best), np.array(right)
    threshold = best[away].max()
    found = evaluated[0].open_set[1]
    assert (found.present, found.absent) == (3, 2)
    assert found.threshold["0.01"] == pytest.approx(threshold, abs=1e-6)
    assert found.tpr["0.01"] == pytest.approx((best[~away] > threshold).mean())
    assert found.identified["0.01"] == pytest.approx((right & (best > threshold))[~away].mean())
    assert found.auc == pytest.approx((best[~away][:, None] > best[away]).mean())


def test_a_swapped_instruction_is_set_against_the_own_one_of_the_same_queries(folder):
    """Eyes do not read: what people 0 and 1 get under another outfit's sentence is what they got. Person 2, whose
    figures are others, has no other outfit to be asked by, and counts on neither side."""
    options = dataclasses.replace(PLAIN, controls=True)
    sets = load_sets(folder, [("shop", "li", ("requested_outfit",), "query", "gallery", ())])
    evaluation = Evaluator(Eyes(), sets, options).run()
    (entry,) = select(evaluation.figures, system="swapped_instruction")
    whole = evaluation.headline(sets[0])
    ap = whole.ranking.ap
    assert entry.queries == 2
    assert entry.description.endswith("; under the instruction for another outfit of the same person")
    assert entry.mAP == entry.mAP_own == pytest.approx(ap[:2].mean())
    assert ap[2] != ap[:2].mean()
    assert 0 <= entry.follow_rate <= 1
    assert whole.figure.mAP == pytest.approx(ap.mean())
    # Nor is there a mAP over tau: the similarity of the options reads attributes, which nobody names here.
    assert whole.figure.mAP_tau is None
    assert "states its attributes" in whole.figure.tau_missing


def test_under_one_sentence_map_tau_is_map(evaluated):
    for name, protocol in (("street", "market"), ("night", "llcm_n2v")):
        row = figure(evaluated[0], name, protocol)
        assert row.mAP_tau == {"0.5": pytest.approx(row.mAP)}
        assert row.tau_missing is None


def test_of_equal_pictures_the_own_sources_copy_stays(evaluated):
    """Person 0's picture 200 has camera 0 in street, so it is junk for its query 100; in words it has no camera."""
    for name, protocol, number in (("street", "market", 1), ("words", "identity", 2)):
        ranked = outcome(evaluated[0], name, protocol, **FREE)
        copies = ranked.gallery.content == evaluated[0].sets[1].gallery_records.content[0]
        assert ranked.source[copies].tolist() == [[number, 0 if number == 1 else 4]]


def test_borrowed_pictures_have_the_cameras_of_their_own_set(folder, tmp_path):
    """Street's query of person 0 is from camera 0. A data set that shows street's pictures names their cameras."""
    shown = [("street", 0, 0, False, 600, ""), ("street", 0, 1, False, 601, ""), ("album", 7, 0, False, 602, "")]
    captions = [("street", 0, -1, False, 603, "person 0")]
    write(tmp_path, "album", "t2i", "album", {"query": captions, "gallery": shown}, cameras_of=["street"])
    write(tmp_path, "plain", "t2i", "album", {"query": captions, "gallery": shown})
    space, street = PeopleSpace(), open_dataset(folder, "street")
    query = space.records(street, street.index("query"), 0).take(np.array([0]))
    found = {}
    for number, name in enumerate(("album", "plain"), 1):
        other = open_dataset(tmp_path, name)
        gallery = space.records(other, other.index("gallery"), number)
        positive, junk = MARKET.against_union(query_is_image=True).relate(query, gallery)
        found[name] = positive.tolist(), junk.tolist()
        assert len(set(gallery.source.tolist())) == 1  # the set itself stays one source
    assert found["album"] == ([False, True, False], [True, False, False])
    assert found["plain"] == ([True, True, False], [False, False, False])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("words", "t2i", ("identity",), "query", "train", ()), "has no split 'train'; it has query, gallery"),
        (("street", "trad", ("market",), "query", "query", ()),
         r"test set street: protocol market .*drops all 5 queries.*5 pairs are junk.*camera is the same"),
        (("street", "vi", ("sysu_all",), "query", "gallery", ()),
         r"test set street: protocol sysu_all .*takes query records of modality 1 .*they have modality 0"),
        (("words", "cc", ("prcc_cross_multi_shot",), "query", "gallery", ()), r"records of camera_number 2.*-1"),
    ],
)  # fmt: skip
def test_sets_that_cannot_be_evaluated(folder, entry, message):
    with pytest.raises(DatasetError, match=message):
        load_sets(folder, [entry])


def test_queries_are_asked_by_the_sentence_that_the_set_names(tmp_path):
    benchmark = Benchmark(edition=2, train_people=2, test_people=24, image_size=(32, 16), template_size=(16, 16))
    spec = benchmark.spec("li")
    write_dataset(tmp_path, spec, BuildOptions(workers=1, progress=False))
    dataset = open_dataset(tmp_path, "procedural_li")
    asked = {}
    for number in range(3):
        entry = Entry("li", tasks.task("li"), ("identity",), query_sentence=number)
        test = Loader().load(entry, (dataset, "query"), (dataset, "gallery"))
        asked[number] = [test.query.instruction(record) for record in range(len(test.query))]
        gallery = [test.gallery.instruction(record) for record in range(len(test.gallery))]
        assert gallery == [benchmark.sentences(shot)[0] for shot in spec.splits["gallery"]]
    assert [*zip(*asked.values(), strict=True)] == [benchmark.sentences(shot) for shot in spec.splits["query"]]
    with pytest.raises(DatasetError, match=r"has 3 sentences, but task li asks by number 3, counted from 0"):
        Loader().load(dataclasses.replace(entry, query_sentence=3), (dataset, "query"), (dataset, "gallery"))
