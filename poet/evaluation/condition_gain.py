"""Condition gain: what a condition is worth to the model, in nats.

For each task and each kind of condition it has, one kind at a time is exchanged for another clip's.
The gain is the loss with the exchanged condition less the loss with the right one, on the tokens
that are to be predicted: 0 for a condition that is ignored.

Shape suffixes: N clips, S sequence, O tokens of an output stream, P loss spans.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from poet import streams
from poet.evaluation import metric
from poet.evaluation.likelihood import by_stream, fields, token_scores
from poet.evaluation.metrics import select
from poet.evaluation.report.tables import Row
from poet.models.transformer import Model, Params
from poet.store.raw import origin
from poet.streams.base import CONDITION
from poet.tasks.layout import Layout, Segment, Span
from poet.tasks.registry import Task
from poet.tasks.resolved import Resolved
from poet.training.losses import TokenScores

# Examples of one task, each array [N, ...]; see `poet.data.loader`.
Batch = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """One kind of condition, exchanged by itself.

    Attributes:
      name: what it is to a user.
      text: whether it is the text.
      spans: where it stands in the prefix.
      openings: loss spans (by index) that open with it.
      alone: whether it is measured without the opening frames, in a task where they are optional.
    """

    name: str
    alone: bool = False
    text: bool = False
    spans: tuple[Span, ...] = ()
    openings: tuple[int, ...] = ()


def kinds(resolved: Resolved, task: Task) -> tuple[Kind, ...]:
    """The kinds of condition of a task in evaluation; () for an unconditional one."""
    layout = resolved.layout(task)
    found = [Kind(name=streams.get("text").title, text=True)] if layout.text_span else []
    openings = _openings(resolved, task, layout)
    named = {stream.called(CONDITION): stream for stream in (*task.conditions, *task.openings)}
    for name in layout.condition_streams:
        stream = named.get(name)
        if stream is None:  # The source, which does not depend on the clip.
            continue
        spans = tuple(s for s in layout.spans if s.segment.stream == name)
        if stream.opens in openings:
            openings[stream.opens] = dataclasses.replace(openings[stream.opens], spans=spans)
        else:
            found.append(Kind(name=stream.title, spans=spans))
    if openings and resolved.conditioning_range(task)[0] == 0:
        found += [dataclasses.replace(k, name=f"{k.name} alone", alone=True) for k in found]
    return (*found, *openings.values())


def _openings(resolved: Resolved, task: Task, layout: Layout) -> dict[str, Kind]:
    """Output stream -> its opening condition."""
    latents = resolved.eval_latents(task)
    frames, given = resolved.frames_of(latents), resolved.conditioning_codes(task, latents)
    opening = "first frame" if frames == 1 else f"first {frames} frames"
    names = {stream.opens: stream.title for stream in task.openings}
    places: dict[str, list[int]] = {}
    for index, span in enumerate(layout.loss_spans):
        if given[index]:
            places.setdefault(span.segment.stream, []).append(index)
    return {name: Kind(name=names.get(name, opening), openings=tuple(p)) for name, p in places.items()}


# ------------------------------------------------------------------------------------- exchanging


def partners(keys: Sequence[str], captions: Sequence[str], usable_N: np.ndarray) -> np.ndarray:
    """For each clip the index of another one, int64 [N]: the next whose caption and origin differ.

    A clip that is not usable (no token of it is scored) is taken last, one of the same caption before
    that, one of the same origin before both.
    """
    places = np.array([origin(key) for key in keys])
    texts = np.array(captions)
    cost_NxN = (places[:, None] == places[None]) + 2 * (texts[:, None] == texts[None]) + 4 * ~usable_N[None]
    clips = len(keys)
    following_NxN = (np.arange(clips)[:, None] + np.arange(1, clips)) % clips
    best_N = np.take_along_axis(cost_NxN, following_NxN, axis=1).argmin(axis=1)
    return following_NxN[np.arange(clips), best_N]


def exchanged(batch: Batch, partners_N: np.ndarray, kind: Kind, layout: Layout) -> dict[str, Any]:
    """The examples with one kind of condition taken from their partners; what is predicted stays."""
    result = dict(batch)
    if kind.text:
        result |= {n: batch[n][partners_N] for n in ("text_states", "text_length")}
    tokens_NxS = np.array(batch["tokens"])
    other_NxS = tokens_NxS[partners_N]
    for span in kind.spans:
        tokens_NxS[:, span.start : span.stop] = other_NxS[:, span.start : span.stop]
    for index in kind.openings:
        span = layout.loss_spans[index]
        given_NxO = np.arange(span.segment.length) < batch["known"][:, index, None]
        place = slice(span.start, span.stop)
        tokens_NxS[:, place] = np.where(given_NxO, other_NxS[:, place], tokens_NxS[:, place])
    return result | {"tokens": tokens_NxS}


# ------------------------------------------------------------------------------ what can be copied


def copyable(batch: Batch, kind: Kind, layout: Layout) -> dict[str, np.ndarray]:
    """Output stream -> bool [N, O]: where the right code is the condition's at the same place.

    For an opening it is the last conditioning latent frame.  Streams that nothing could be copied to from
    this kind of condition (text, sound for a picture) are absent.
    """
    found: dict[str, list[np.ndarray | None]] = {}
    for index, span in enumerate(layout.loss_spans):
        masks = [_same(batch, span, given) for given in kind.spans if _alike(span.segment, given.segment)]
        if index in kind.openings and span.segment.ids.table == "visual":
            masks.append(_held(batch, index, span))
        empty = np.zeros((len(batch["tokens"]), span.segment.length), bool)
        parts = found.setdefault(span.segment.stream, [])
        parts.append(np.logical_or.reduce([empty, *masks]) if masks else None)
    return {stream: np.concatenate(p, axis=1) for stream, p in found.items() if p[0] is not None}


def _alike(one: Segment, other: Segment) -> bool:
    return one.ids == other.ids and one.grid[1:] == other.grid[1:]


def _same(batch: Batch, span: Span, given: Span) -> np.ndarray:
    """bool [N, O]; both begin at the clip's first latent."""
    both = min(span.segment.length, given.segment.length)
    tokens_NxS, mask = batch["tokens"], np.zeros((len(batch["tokens"]), span.segment.length), bool)
    right = tokens_NxS[:, span.start : span.start + both]
    mask[:, :both] = right == tokens_NxS[:, given.start : given.start + both]
    return mask


def _held(batch: Batch, index: int, span: Span) -> np.ndarray:
    """bool [N, O]: equal to the last conditioning latent frame; False without one."""
    latents, *place = span.segment.grid
    codes_NxTxP = batch["tokens"][:, span.start : span.stop].reshape(-1, latents, np.prod(place))
    given_N = batch["known"][:, index] // codes_NxTxP.shape[2]
    last_NxP = codes_NxTxP[np.arange(len(codes_NxTxP)), np.maximum(given_N, 1) - 1]
    equal = (codes_NxTxP == last_NxP[:, None]) & (given_N > 0)[:, None, None]
    return equal.reshape(len(equal), -1)


# -------------------------------------------------------------------------------------- measuring


def gains(
    model: Model,
    params: Params,
    batch: Batch,
    layout: Layout,
    kinds: Sequence[Kind],
    partners_N: np.ndarray,
    mesh: Mesh,
    *,
    size: int,
    loss_vocabulary: str = "legal",
) -> list[tuple[str, str, Batch]]:
    """(Kind of condition, output stream, its tokens under the right and under the exchanged condition) of every pair.

    Fields are those of `poet.evaluation.metrics.tokens`; `copyable` is absent where nothing can be copied.
    Call under `jax.set_mesh(mesh)`.

    Args:
      params: on the mesh, as `mesh.Rules` place them.
      batch: N examples, all of them on every process.
      size: examples scored at once, which divide N; one program serves all kinds.
    """

    def score(examples: Batch) -> dict[str, TokenScores]:
        parts = []
        for start in range(0, len(examples["tokens"]), size):
            some = {name: x[start : start + size] for name, x in examples.items()}
            parts.append(token_scores(model, params, some, layout, mesh, loss_vocabulary))
        return by_stream(jax.tree.map(lambda *each: np.concatenate(each), *parts), layout)

    given = {False: batch, True: dict(batch) | {"known": np.zeros_like(batch["known"])}}
    rights = {alone: score(given[alone]) for alone in {kind.alone for kind in kinds}}
    found = []
    for kind in kinds:
        examples = given[kind.alone]
        wrong, masks = score(exchanged(examples, partners_N, kind, layout)), copyable(examples, kind, layout)
        for stream, right in rights[kind.alone].items():
            copied = {"copyable": masks[stream]} if stream in masks else {}
            found.append((kind.name, stream, {**fields(right), "wrong_loss": wrong[stream].loss, **copied}))
    return found


def row(task: str, condition: str, stream: str, tokens: Batch) -> tuple[Row, metric.Found]:
    """The measurements of what `gains` found, and what they come from; those that do not exist are None.

    `<key>_low` and `<key>_high` bound <key> in 95 % of bootstrap resamples over clips.  `copyable` is the
    fraction of predicted tokens that could be copied; `copyable_...` and `rest_...` are per token of these
    and of the others, accuracies with the right condition.
    """
    found = metric.measure(tokens, select("condition_gain")[0])
    names = {"task": task, "condition": condition, "stream": stream}
    return {**names, **metric.columns(found), "clips": found["nats_per_clip"].summary.n}, found
