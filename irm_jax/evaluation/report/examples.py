"""The pictures of a report: rank lists of some queries, the best and the worst, and attention rollouts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.images import decode_record, resize
from irm_jax.evaluation.embed import EmbeddingModel, Instruction
from irm_jax.evaluation.evaluator import Evaluation, Outcome
from irm_jax.evaluation.report.results import RankedImage, RankList, Rollout, Section
from irm_jax.evaluation.report.rollout import attention_rollout, caption_rollout
from irm_jax.evaluation.test_sets import SplitData, TestSet
from irm_jax.models import encoders


def sections_of(
    evaluation: Evaluation, embedder: EmbeddingModel, *, queries: int, rollouts: int, seed: int
) -> list[Section]:
    """Returns one section per test set, under its first protocol, in the order of the tasks.

    Each has `queries` random examples, as many best and as many worst queries by AP, and `rollouts` attention
    pictures. Every process must call it.
    """
    sections = []
    for test in sorted(evaluation.sets, key=lambda t: t.task.id):
        outcome = evaluation.headline(test)
        ranking = outcome.ranking
        valid = np.flatnonzero(ranking.valid)
        by_ap = valid[np.argsort(ranking.ap[valid], kind="stable")]
        examples = np.sort(np.random.default_rng(seed).permutation(valid)[:queries])
        chosen = {"examples": examples, "best": by_ap[::-1][:queries], "worst": by_ap[:queries]}
        lists = {
            kind: [_rank_list(evaluation, test, outcome, int(q)) for q in places] for kind, places in chosen.items()
        }
        records = outcome.record[examples[:rollouts]].tolist()
        rollouts_of = _rollouts(embedder, test, records)
        protocol = outcome.case.protocol
        sections.append(
            Section(
                test.name, test.task.name, protocol.name, **lists, rollouts=rollouts_of, rule=protocol.description
            )
        )  # fmt: skip
    return sections


def _rank_list(evaluation: Evaluation, test: TestSet, outcome: Outcome, query: int) -> RankList:
    ranking = outcome.ranking
    ids = ranking.top_ids[query][ranking.top_ids[query] >= 0]
    one, many = outcome.pair(query, ids)
    positive, junk = outcome.case.protocol.relate(one, many)
    same_person = many.identity == one.identity
    images = []
    for place, image in enumerate(ids):
        number, record = (int(x) for x in outcome.source[image])
        relation = "junk" if junk[place] else "positive" if positive[place] else "negative"
        images.append(
            RankedImage(
                picture_of(*evaluation.sets[number].gallery_record(record)),
                float(ranking.top_scores[query, place]), relation,
                "same person" if same_person[place] else "another person",
            )
        )  # fmt: skip
    query_record = int(outcome.record[query])
    return RankList(
        query_id=_name(test, query_record),
        instruction=test.query.instruction(query_record),
        ranked=images,
        query_image=picture_of(test.query, query_record),
        ap=float(ranking.ap[query]),
        first_positive_rank=int(ranking.first_positive_rank[query]) or None,
    )


def _name(test: TestSet, query: int) -> str:
    """Returns how the page calls a query: its number, which per_query/ has too, and its file in the raw data set."""
    return f"{test.name} query {query}, {test.query.index.file[query]}"


def picture_of(split: SplitData, record: int) -> bytes:
    """Returns the encoded picture of a record."""
    return bytes(split.pictures[record]["image"])


def _rollouts(embedder: EmbeddingModel, test: TestSet, queries: Sequence[int]) -> list[Rollout]:
    if not queries:
        return []
    limit = test.query.dataset.max_pixels
    pictures = [decode_record(picture_of(test.query, q), f"{test.name}, query {q}", max_pixels=limit) for q in queries]
    instructions = [test.query.instruction(q) for q in queries]
    names = [_name(test, q) for q in queries]
    # A caption is compared with the described picture, it does not edit it.
    return rollouts_of(embedder, pictures, instructions, names, edited=test.task.has_query_image)


def rollouts_of(
    embedder: EmbeddingModel,
    pictures: Sequence[np.ndarray],
    instructions: Sequence[Instruction],
    names: Sequence[str],
    *,
    edited: bool = True,
) -> list[Rollout]:
    """Returns the attention of each picture u8[H,W,3] under its instruction; all are sentences, or all are pictures.

    edited: the instruction edits the picture; else it is a caption that is compared with it. None for an image encoder
    that shows no attention. Every process must call it.
    """
    config, model, variables = embedder.model.config, embedder.model, embedder.variables
    if not encoders.image_encoder(config.image_encoder).sows_attention:
        return []
    images = np.stack([resize(picture, config.image_size) for picture in pictures])
    if not isinstance(instructions[0], str):
        shown = [np.asarray(instruction) for instruction in instructions]
        templates = np.stack([resize(picture, config.instruction_image_size) for picture in shown])
        maps = attention_rollout(model, variables, images, templates=templates)
        return [
            Rollout(name, pictures[i], maps.image[i], instruction_image=shown[i], instruction_heat=maps.instruction[i])
            for i, name in enumerate(names)
        ]
    tokens = embedder.tokens([str(instruction) for instruction in instructions])
    maps = (attention_rollout if edited else caption_rollout)(model, variables, images, tokens=tokens)
    return [
        Rollout(name, pictures[i], maps.image[i], tokens=_words(embedder, tokens[i], maps.instruction[i]))
        for i, name in enumerate(names)
    ]


def _words(embedder: EmbeddingModel, tokens: np.ndarray, weights: np.ndarray) -> list[tuple[str, float]]:
    """Returns the word pieces with their weights, without [CLS], [SEP] and padding."""
    own = embedder.tokenizer
    special = {own.pad_id, own.cls_id, own.sep_id}
    pieces = [(int(t), float(w)) for t, w in zip(tokens, weights, strict=True) if int(t) not in special]
    return [(own.decode([t]), max(w, 0.0)) for t, w in pieces]
