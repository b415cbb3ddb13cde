"""What conditions could be worth: small direct predictors trained on a token store, beside which condition
gains (`poet eval`) are to be read.

    python tests/benchmarks/bench_condition_bounds.py STORE [--seconds=60] [--rows=NAME]

For every question two networks of one form are trained, one that sees what a language model knows anyway
(what came before), and one that sees the condition too.  What the second saves on the validation split is
a lower bound of what the condition tells: a model that gains much less does not listen.  A gain below 0, or
one that shrinks by far when the network is told more, says that `--seconds` or the clips were too few.  Codes are
predicted as their bits, so that a small network can; the sound's as they are.  Trained for so many
seconds each, the best state on a tenth of the training clips is kept.

Shape suffixes: N clips, T latents, P places, K bits, R rows (examples of a question), F features.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from poet.evaluation.intervals import ratio_interval
from poet.evaluation.report.tables import format_table
from poet.store.raw import origin
from poet.store.reader import dataset, load_manifest

WIDTH, BATCH, LEARNING_RATE, CHECKS = 256, 256, 1e-3, 12
CHECKED_ROWS = 8192
PAST_CODES, EMBEDDED = 4, 32
# Cells in the 3x3 neighbourhood (0..2, 0..2) that stand before its middle in the order of codes.
PRECEDING = ((0, 0), (0, 1), (0, 2), (1, 0))
# Rows -> features: codes int [R, C] that are embedded, known float [R, F], told float [R, G].
Features = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is predicted from what, over the rows of one split.

    Attributes:
      rows: how many there are; row r is of clip r // (rows / clips).
      features: of some rows; the last of them are the condition.
      labels_Rx: int [R] below `classes`, or bits [R, K] where that is 0.
      embedded: codes that features embed.
    """

    clips: int
    features: Features
    labels_Rx: np.ndarray
    classes: int = 0
    embedded: int = 1

    @property
    def rows(self) -> int:
        return len(self.labels_Rx)


# -------------------------------------------------------------------------------------- the store


def read(store: str, split: str) -> dict[str, np.ndarray]:
    """Every stream of a split, int32 [N, *grid]; text states are their mean, float32 [N, E]."""
    streams = load_manifest(store).plan.streams
    clips = list(dataset(store, split).as_numpy_iterator())
    found = {name: np.stack([c[name] for c in clips]).reshape(-1, *s.grid) for name, s in streams.items()}
    found["text"] = np.stack([c["text_states"].astype(np.float32).mean(axis=0) for c in clips])
    found["key"] = np.array([c["key"].decode() for c in clips])
    if "audio" in found:
        sounding = np.array([c["sounding"] > 0 for c in clips])
        found = {name: x[sounding] for name, x in found.items()}
    return found


def bits_of(codes: np.ndarray, count: int) -> np.ndarray:
    """int8 [..., K] of -1 and 1; zeros where a code is not given."""
    bits = (codes[..., None] >> np.arange(count) & 1) * 2 - 1
    return np.where(codes[..., None] < 0, 0, bits).astype(np.int8)


# ----------------------------------------------------------------------------------- the questions


def sound(data: dict[str, np.ndarray], bits: int, codes: int, event: bool = False) -> Question:
    """The first level's next code, or whether it is the commonest one, from its past and the video around it."""
    level_NxF = data["audio"][:, 0, :, 0]
    clips, frames = level_NxF.shape
    latents = data["video"].shape[1]
    video_NxTxX = np.pad(bits_of(data["video"], bits).reshape(clips, latents, -1), ((0, 0), (1, 1), (0, 0)))
    past_NxF = np.pad(level_NxF, ((0, 0), (PAST_CODES, 0)), constant_values=codes)

    def features(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        clip, frame = rows // frames, rows % frames
        past = np.stack([past_NxF[clip, frame + i] for i in range(PAST_CODES)], axis=1)
        place = frame / frames * latents
        around = np.concatenate([video_NxTxX[clip, place.astype(int) + i] for i in range(3)], axis=1)
        return past, np.stack([place, place % 1], axis=1), around

    labels = level_NxF.reshape(-1)
    if event:
        labels = (labels != np.bincount(labels).argmax()).astype(np.int32)
    return Question(clips=clips, features=features, labels_Rx=labels, classes=2 if event else codes, embedded=codes + 1)


def cells(data: dict[str, np.ndarray], bits: int, told: str, past: bool, preceding: bool = False) -> Question:
    """Bits of a video code from those of another stream around the same cell; where `past`, also from the
    codes around it one latent before, and where `preceding` from the codes beside it that precede it in its
    own frame, as a language model sees them."""
    video_NxTxHxW = data["video"]
    clips, latents, height, width = video_NxTxHxW.shape
    own, other = (_surrounded(bits_of(data[name], bits)) for name in ("video", told))

    def around(padded: np.ndarray, clip: Any, t: Any, y: Any, x: Any) -> np.ndarray:
        return np.concatenate([padded[clip, t, y + i, x + j] for i in range(3) for j in range(3)], axis=1)

    def features(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        clip, t, y, x = np.unravel_index(rows, (clips, latents, height, width))
        known = np.stack([t == 0, y / height, x / width], axis=1).astype(np.float32)
        if past:
            known = np.concatenate([known, around(own, clip, t, y, x)], axis=1)
        if preceding:
            beside = [own[clip, t + 1, y + i, x + j] for i, j in PRECEDING]
            known = np.concatenate([known, *beside], axis=1)
        cell = (y * width + x)[:, None]
        return cell, known, around(other, clip, t + 1, y, x)

    labels = (bits_of(video_NxTxHxW, bits) > 0).reshape(-1, bits)
    return Question(clips=clips, features=features, labels_Rx=labels, embedded=height * width)


def _surrounded(x_NxTxHxWxK: np.ndarray) -> np.ndarray:
    """With nothing before the first latent and around the picture."""
    return np.pad(x_NxTxHxWxK, ((0, 0), (1, 0), (1, 1), (1, 1), (0, 0)))


def text(data: dict[str, np.ndarray], bits: int) -> Question:
    """Bits of the codes of the first latent from the text, each place by itself."""
    first_NxP = data["video"][:, 0].reshape(len(data["video"]), -1)
    clips, places = first_NxP.shape

    def features(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return (rows % places)[:, None], np.zeros((len(rows), 1), np.float32), data["text"][rows // places]

    labels = (bits_of(first_NxP, bits) > 0).reshape(-1, bits)
    return Question(clips=clips, features=features, labels_Rx=labels, embedded=places)


def place(data: dict[str, np.ndarray], names: list[str]) -> Question:
    """The place of a clip (what its key says that it was cut from) from the text."""
    labels = np.array([names.index(origin_of(key)) for key in data["key"]], np.int32)

    def features(rows: np.ndarray) -> tuple[np.ndarray, ...]:
        return np.zeros((len(rows), 1), np.int32), np.zeros((len(rows), 1), np.float32), data["text"][rows]

    return Question(clips=len(labels), features=features, labels_Rx=labels, classes=len(names))


def origin_of(key: str) -> str:
    """The map's name, without split and episode."""
    return origin(key).rpartition("/")[2]


def questions(data: dict[str, np.ndarray], streams: Any) -> dict[str, Question]:
    """Those that a store can answer."""
    bits, found = streams["video"].bits, {"first latent, from text": text(data, streams["video"].bits)}
    names = sorted({origin_of(key) for key in data["all keys"]})
    if len(names) > 1:
        found["place, from text"] = place(data, names)
    if "audio" in data:
        codes = 2 ** streams["audio"].bits
        found["sound (level 0), from video"] = sound(data, bits, codes)
        found["whether it sounds, from video"] = sound(data, bits, codes, event=True)
    for name in ("structure", "inpainting"):
        if name in data:
            found[f"video, from {name}"] = cells(data, bits, name, past=False)
            found[f"video, from {name} and the latent before"] = cells(data, bits, name, past=True)
            every = cells(data, bits, name, past=True, preceding=True)
            found[f"video, from {name}, the latent before and the codes before it"] = every
    return found


# ------------------------------------------------------------------------------------ the networks


def inputs(question: Question, rows: np.ndarray, told: bool) -> tuple[np.ndarray, np.ndarray]:
    codes, known, condition = question.features(rows)
    condition = condition.astype(np.float32) * told  # Both networks have one form.
    return codes, np.concatenate([known.astype(np.float32), condition], axis=1)


def build(question: Question, key: jax.Array) -> dict[str, jax.Array]:
    codes, features = inputs(question, np.arange(1), told=True)
    outputs = question.classes or question.labels_Rx.shape[1]
    sizes = [codes.shape[1] * EMBEDDED + features.shape[1], WIDTH, WIDTH, outputs]
    keys = jax.random.split(key, len(sizes))
    params = {"embedded": jax.random.normal(keys[-1], (question.embedded, EMBEDDED))}
    for i, (read_, written) in enumerate(zip(sizes, sizes[1:])):
        params[f"weight_{i}"] = jax.random.normal(keys[i], (read_, written)) * read_**-0.5
        params[f"bias_{i}"] = jnp.zeros(written)
    return params


def nats(params: Any, codes: jax.Array, features: jax.Array, labels: jax.Array) -> jax.Array:
    """Loss of every row, [R]."""
    x = jnp.concatenate([params["embedded"][codes].reshape(len(codes), -1), features], axis=1)
    for i in range(3):
        x = x @ params[f"weight_{i}"] + params[f"bias_{i}"]
        x = jax.nn.gelu(x) if i < 2 else x
    if labels.ndim == 1:
        return optax.softmax_cross_entropy_with_integer_labels(x, labels)
    return optax.sigmoid_binary_cross_entropy(x, labels).sum(axis=1)


def fit(question: Question, told: bool, seconds: float) -> Any:
    """Parameters that were best on the last tenth of the clips."""
    rng, tx = np.random.default_rng(0), optax.adamw(LEARNING_RATE, weight_decay=0.01)
    params = build(question, jax.random.key(0))
    state, kept = tx.init(params), question.rows // question.clips * (question.clips - question.clips // 10)

    @jax.jit
    def step(params: Any, state: Any, *batch: jax.Array) -> tuple[Any, Any]:
        updates, state = tx.update(jax.grad(lambda p: nats(p, *batch).mean())(params), state, params)
        return optax.apply_updates(params, updates), state

    begin, best, rounds = time.perf_counter(), (np.inf, params), 0
    checked = rng.integers(kept, question.rows, CHECKED_ROWS)
    while time.perf_counter() - begin < seconds:
        rows = rng.integers(0, kept, BATCH)
        params, state = step(params, state, *inputs(question, rows, told), question.labels_Rx[rows])
        if time.perf_counter() - begin > seconds * rounds / CHECKS:
            rounds += 1
            best = min(best, (score(question, params, told, checked).mean(), params), key=lambda b: b[0])
    return best[1]


_SCORE = jax.jit(nats)


def score(question: Question, params: Any, told: bool, rows: np.ndarray) -> np.ndarray:
    """Nats of each of these rows."""
    parts = [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)]
    found = [_SCORE(params, *inputs(question, part, told), question.labels_Rx[part]) for part in parts]
    return np.concatenate(jax.device_get(found)).astype(np.float64)


def bound(name: str, training: Question, held_out: Question, seconds: float) -> dict[str, Any]:
    """A row of the table: nats a clip without and with the condition, and the gain with its interval."""
    without, given = (
        score(held_out, fit(training, told, seconds), told, np.arange(held_out.rows))
        .reshape(held_out.clips, -1)
        .sum(axis=1)
        for told in (False, True)
    )
    gain_N, ones_N = without - given, np.ones(held_out.clips)
    low, high = ratio_interval(gain_N, ones_N)
    return {
        "what, from what": name,
        "without": float(without.mean()),
        "with": float(given.mean()),
        "gain a clip": float(gain_N.mean()),
        "95 %": f"[{low:.2f}, {high:.2f}]",
        "clips": held_out.clips,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What conditions of a token store could be worth.")
    parser.add_argument("store")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, for each of two networks a row")
    parser.add_argument("--rows", default="", help="only questions whose name holds this")
    args = parser.parse_args()
    streams = load_manifest(args.store).plan.streams
    splits = {split: read(args.store, split) for split in ("train", "validation")}
    keys = np.concatenate([data["key"] for data in splits.values()])
    asked = [questions(data | {"all keys": keys}, streams) for data in splits.values()]
    rows = []
    for name in asked[0]:
        if args.rows in name:
            rows.append(bound(name, asked[0][name], asked[1][name], args.seconds))
            print(format_table(rows[-1:]), flush=True)
    print(format_table(rows, "NATS A CLIP"))


if __name__ == "__main__":
    main()
