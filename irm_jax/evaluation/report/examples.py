"""The pictures of a report: rank lists of some queries, the best and the worst, and where the model looked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.images import decode, resize
from irm_jax.evaluation import protocols
from irm_jax.evaluation.embed import EmbeddingModel
from irm_jax.evaluation.evaluator import Evaluation, Ranked
from irm_jax.evaluation.ranking.trials import taken
from irm_jax.evaluation.report.results import RankedImage, RankList, Rollout, TaskSection
from irm_jax.evaluation.report.rollout import attention_rollout, caption_rollout
from irm_jax.evaluation.test_sets import EvaluationSet, SplitData


def task_sections(
    evaluation: Evaluation, embedder: EmbeddingModel, *, queries: int, rollouts: int, seed: int
) -> list[TaskSection]:
    """One section a test set, under its first protocol: `queries` random examples, as many best and worst cases, and
    `rollouts` attention pictures."""
    sections = []
    for test in sorted(evaluation.sets, key=lambda t: t.task.id):
        ranked = evaluation.ranked[test.protocols[0]]
        usable = np.flatnonzero(ranked.ranking.valid)
        order = usable[np.argsort(ranked.ranking.ap[usable], kind="stable")]
        examples = np.sort(np.random.default_rng(seed).permutation(usable)[:queries])
        best, worst = order[::-1][:queries], order[:queries]
        pick = lambda chosen, t=test, r=ranked: [_rank_list(evaluation, t, r, int(q)) for q in chosen]  # noqa: E731
        shown = examples[:rollouts]
        sections.append(
            TaskSection(
                test.task.name, test.protocols[0], examples=pick(examples), best=pick(best), worst=pick(worst),
                rollouts=_rollouts(embedder, test, ranked.record[shown].tolist()),
            )
        )  # fmt: skip
    return sections


def _rank_list(evaluation: Evaluation, test: EvaluationSet, ranked: Ranked, query: int) -> RankList:
    protocol = protocols.protocol_of(test.protocols[0])
    ids = [int(i) for i in ranked.ranking.top_ids[query] if i >= 0]
    one = {k: v[:, None] for k, v in taken(ranked.query, np.array([query])).items()}
    many = {k: v[None] for k, v in taken(ranked.gallery, np.array(ids, np.int64)).items()}
    positive, junk = protocol.relate(one, many)
    images = []
    for place, gallery in enumerate(ids):
        number, record = (int(x) for x in ranked.source[gallery])
        relation = "junk" if junk[0, place] else "positive" if positive[0, place] else "negative"
        same = bool(one["identity"][0, 0] == many["identity"][0, place])
        picture = _picture(*evaluation.sets[number].gallery_record(record))
        images.append(
            RankedImage(
                picture, float(ranked.ranking.top_scores[query, place]),
                relation, "same person" if same else "another person",
            )
        )  # fmt: skip
    asking = int(ranked.record[query])
    return RankList(
        query_id=f"{test.name} query {asking}",
        instruction=test.query.asks[test.query.own[asking]],
        ranked=images,
        query_image=_picture(test.query, asking),
        ap=float(ranked.ranking.ap[query]),
        first_positive_rank=int(ranked.ranking.first_positive_rank[query]) or None,
        wanted=protocol.description.removeprefix("positive: "),
    )


def _picture(split: SplitData, record: int) -> bytes:
    return bytes(split.dataset.reader(split.split, ("image",))[record]["image"])


def _rollouts(embedder: EmbeddingModel, test: EvaluationSet, queries: Sequence[int]) -> list[Rollout]:
    if not queries:
        return []
    config = embedder.model.config
    pictures = [decode(_picture(test.query, q)) for q in queries]
    images = np.stack([resize(p, config.image_size) for p in pictures])
    asks = [test.query.asks[test.query.own[q]] for q in queries]
    if test.task.group == "visual":
        templates = np.stack([resize(np.asarray(a), config.instruction_image_size) for a in asks])
        maps = attention_rollout(embedder.model, embedder.variables, images, templates=templates)
        return [
            Rollout(
                f"{test.name} query {q}", pictures[i], maps.image[i], instruction_image=np.asarray(asks[i]),
                instruction_heat=maps.instruction[i],
            )
            for i, q in enumerate(queries)
        ]  # fmt: skip
    tokens = embedder.tokenizer.encode([str(a) for a in asks])
    if test.task.has_query_image:
        maps = attention_rollout(embedder.model, embedder.variables, images, tokens=tokens)
    else:  # the described picture and its caption, which are compared, not edited
        maps = caption_rollout(embedder.model, embedder.variables, images, tokens)
    return [
        Rollout(
            f"{test.name} query {q}", pictures[i], maps.image[i],
            tokens=_words(embedder, tokens[i], maps.instruction[i]),
        )
        for i, q in enumerate(queries)
    ]  # fmt: skip


def _words(embedder: EmbeddingModel, tokens: np.ndarray, weights: np.ndarray) -> list[tuple[str, float]]:
    """Word pieces with their weights; the frame of [CLS] and [SEP] and the padding are left out."""
    real = [(int(t), float(w)) for t, w in zip(tokens, weights, strict=True) if t != 0][1:-1]
    return [(embedder.tokenizer.decode([t]), max(w, 0.0)) for t, w in real]
