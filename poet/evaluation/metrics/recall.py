"""Whether clips show what their texts say: recall of the text of a clip among the texts of all.

No network that joins open-world text and video can be installed, so the joint space is made of the reference: a ridge
regression from vectors of frames and motion to those of texts.  The map that ranks the texts of a fold is fitted on
reference clips with other texts alone.  It knows the reference's domain and no other: its recall does not compare
between references, and the reference's own recall, by the same maps, is what it can reach.

Shape suffixes: N clips, D visual dimensions, E of a text, F folds.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from poet.evaluation import intervals, samples
from poet.evaluation.metric import Batch, Metric, Summary, register
from poet.evaluation.samples import Samples, Set, field_of

FOLDS = 4
# Times the mean squared length of a standardised visual vector.
RIDGE = 0.1
TEXT_WIDTH = 384
# Texts to rank, at least: among fewer, recall at 10 says nothing.
LEAST_TEXTS = 20
# Names of the recall among the texts of both sets begin so.
AMONG_ALL = "text_recall_among_all_at_"
NEEDS = (field_of("frame"), field_of("motion"), field_of("text"), "caption")


def _measure(batch: Batch) -> Samples:
    """One row for each clip: frames' mean, motion's mean, the fold of its text, the text."""
    frames, motion, texts, captions = (batch[name] for name in NEEDS)
    rows = [
        np.concatenate([f.mean(0), m.mean(0), [fold_of(caption)], t[0]]).astype(np.float32)[None]
        for f, m, t, caption in zip(frames, motion, texts, captions, strict=True)
    ]
    return Samples.of(batch, rows)


def fold_of(text: str) -> int:
    """A fold that depends on the text alone."""
    return zlib.crc32(text.encode()) % FOLDS


def ranks(clips: Set, reference: Set, among_all: bool = False) -> np.ndarray:
    """float64 [N]: how many other texts of the fold are nearer to what the map makes of a clip; NaN of no text.

    Texts that are equal are one; a tie counts half.

    Args:
      among_all: texts of the reference are ranked, too: those of the fold, which the map has not seen.
    """
    (visual, folds, texts), (seen, seen_folds, seen_texts) = _split(clips), _split(reference)
    found = np.full(len(visual), np.nan)
    has_text = np.abs(texts).sum(axis=1) > 0
    for fold in range(FOLDS):
        written = np.abs(seen_texts).sum(axis=1) > 0
        fit = (seen_folds != fold) & written
        others = seen_texts[(seen_folds == fold) & written] if among_all else seen_texts[:0]
        asked = (folds == fold) & has_text
        if fit.sum() < 2 or not asked.any():
            continue
        scores, own = _scores(visual[asked], texts[asked], others, _ridge(seen[fit], seen_texts[fit]))
        right = scores[np.arange(len(own)), own][:, None]
        found[asked] = (scores > right).sum(axis=1) + ((scores == right).sum(axis=1) - 1) / 2
    return found


def _split(one: Set) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = one.rows_MxD.astype(np.float64)
    return rows[:, : -TEXT_WIDTH - 1], rows[:, -TEXT_WIDTH - 1], rows[:, -TEXT_WIDTH:]


def _scores(
    visual_NxD: np.ndarray, texts_NxE: np.ndarray, others_MxE: np.ndarray, fitted: tuple[np.ndarray, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of each clip with each distinct text of both sets, about the mean text, and which text is its own."""
    shift, scale, weights_DxE, mean_E = fitted
    distinct, own = np.unique(np.concatenate([texts_NxE, others_MxE]), axis=0, return_inverse=True)
    predicted, distinct = (visual_NxD - shift) / scale @ weights_DxE, distinct - mean_E
    lengths = np.linalg.norm(predicted, axis=1)[:, None] * np.linalg.norm(distinct, axis=1)
    return predicted @ distinct.T / np.maximum(lengths, 1e-12), own.reshape(-1)[: len(texts_NxE)]


def _ridge(visual_NxD: np.ndarray, texts_NxE: np.ndarray) -> tuple[np.ndarray, ...]:
    """(shift, scale, weights [D, E], mean text), by the N x N system: there are more dimensions than clips."""
    shift, mean_E = visual_NxD.mean(axis=0), texts_NxE.mean(axis=0)
    scale = np.maximum(visual_NxD.std(axis=0), 1e-6)
    x = (visual_NxD - shift) / scale
    gram = x @ x.T
    gram[np.diag_indices(len(x))] += RIDGE * np.trace(gram) / len(x)
    return shift, scale, x.T @ np.linalg.solve(gram, texts_NxE - mean_E), mean_E


def _finish(at: int, among_all: bool = False) -> Callable[[Set, Set], Summary]:
    def finish(submission: Set, reference: Set) -> Summary:
        found = ranks(submission, reference, among_all)
        known = np.isfinite(found)
        texts = len(np.unique(_split(submission)[2][known], axis=0)) if known.any() else 0
        if texts < LEAST_TEXTS:
            why = f"{texts} different texts of the submission can be ranked: at least {LEAST_TEXTS} are needed"
            return samples.refused(why, int(known.sum()))
        hits = np.where(known, found < at, 0).astype(np.float64)
        times = submission.times(intervals.RESAMPLES, intervals.SEED) * known
        resampled = (times @ hits) / np.maximum(times.sum(axis=1), 1)
        return samples.percentiles(float(hits.sum() / known.sum()), resampled, int(known.sum()))

    return finish


def chance(clips: Set, at: int, reference: Set | None = None) -> float:
    """The recall of random ranks, of the clips that have a text; `reference`: its texts are ranked, too."""
    sides = [clips] if reference is None else [clips, reference]
    folds, texts = (np.concatenate(parts) for parts in zip(*(_split(side)[1:] for side in sides)))
    has_text = np.abs(texts).sum(axis=1) > 0
    sizes = {fold: len(np.unique(texts[has_text & (folds == fold)], axis=0)) for fold in range(FOLDS)}
    own = has_text[: clips.rows_MxD.shape[0]]
    return float(np.mean([min(at / sizes[int(fold)], 1) for fold in folds[: len(own)][own]]))


_NOTES = {
    False: f"by a ridge map that was fitted on reference clips with other texts ({FOLDS} folds by text).",
    True: "ranked among the texts of the fold of both sets: few clips, many texts.",
}
for _at, _among_all in ((1, False), (5, False), (10, False), (10, True)):
    register(
        Metric(
            name=f"{AMONG_ALL if _among_all else 'text_recall_at_'}{_at}",
            better="more",
            tables=("sets",),
            needs=NEEDS,
            measure=_measure,
            finish=_finish(_at, among_all=_among_all),
            note=f"Fraction of clips whose own text is among the {_at} nearest of its fold, {_NOTES[_among_all]}",
            protocol={"folds": FOLDS, "ridge": RIDGE},
        )
    )
