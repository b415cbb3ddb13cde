"""Each metric of `poet score` beside an independent implementation, on the same arrays.

    python tests/benchmarks/metric_agreement.py --write

The other implementations are scipy, scikit-image, scikit-learn where it is installed, or the definition written as a
loop in float64; none shares a line with poet.  --write puts the table into poet/evaluation/README.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.linalg
import scipy.ndimage
import scipy.signal
import scipy.spatial.distance
import scipy.special
import scipy.stats
import skimage.data
import skimage.metrics

from poet.conditioning.structure import flow
from poet.evaluation.metrics import codes, frechet, kernels, ms_ssim, onsets, pixels, recall, sounds, spread, temporal
from poet.evaluation.samples import SUBMISSION, Samples, Set
from poet.spec import ConditioningSpec

PAGE = Path(__file__).resolve().parents[2] / "poet" / "evaluation" / "README.md"
BEGIN, END = "<!-- agreement: begin -->", "<!-- agreement: end -->"
CLIPS, EACH, DIM = 40, 3, 24


class Row(NamedTuple):
    """A metric, both values, and who computed the other one."""

    metric: str
    ours: float
    other: float
    by: str

    @property
    def difference(self) -> float:
        """Relative, or absolute where the value is below 1."""
        return abs(self.ours - self.other) / max(abs(self.other), 1.0)


# ------------------------------------------------------------------------------------------ of sets


def vectors(seed: int, shift: float = 0.0) -> list[np.ndarray]:
    """float32 [EACH, DIM] of each clip."""
    rng = np.random.default_rng(seed)
    made = rng.normal(size=(CLIPS, 1, DIM)) * 1.3 + shift + 0.4 * rng.normal(size=(CLIPS, EACH, DIM))
    return list(made.astype(np.float32))


def set_of(rows: list[np.ndarray]) -> Set:
    return Samples.of({}, rows).set_of(SUBMISSION)


def of_sets() -> Iterator[Row]:
    made, real = vectors(0, 0.3), vectors(1)
    one, other = set_of(made), set_of(real)
    a, b = (np.concatenate(rows).astype(np.float64) for rows in (made, real))
    c, c_ = np.cov(a.T), np.cov(b.T)
    root = scipy.linalg.sqrtm(c @ c_).real
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + c_ - 2 * root)
    yield Row("frechet", frechet.finite(one, other).value, float(want), "scipy.linalg.sqrtm, numpy.cov")
    yield from _kernels(made, real)
    p = scipy.special.softmax(a[:, :10], axis=1)
    want = np.exp(np.mean([scipy.stats.entropy(row, p.mean(0)) for row in p]))
    yield Row("class_score", spread.class_score(lambda x: x[:, :10], one, other).value, want, "scipy.stats.entropy")
    want = scipy.spatial.distance.pdist([rows.astype(np.float64).mean(0) for rows in made]).mean()
    yield Row("diversity", spread.diversity(one, other).value, want, "scipy.spatial.distance.pdist")
    yield _limit()
    yield _recall()


def _kernels(made: list[np.ndarray], real: list[np.ndarray]) -> Iterator[Row]:
    """Over single vectors, where pairs of one clip do not exist: the textbook estimator."""
    a, b = (np.stack([rows[0] for rows in side]).astype(np.float64) for side in (made, real))
    one, other = (set_of([rows[:1] for rows in side]) for side in (made, real))
    width = np.median(scipy.spatial.distance.pdist(b))
    for name, finish, kernel, by in (
        ("kernel_polynomial", kernels.kid, *_polynomial()),
        ("kernel_gaussian", kernels.kad, *_gaussian(width)),
    ):
        xx, yy, xy = (kernel(*pair) for pair in ((a, a), (b, b), (a, b)))
        n, m = len(a), len(b)
        want = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean()
        yield Row(name, finish(one, other).value, float(want), by)


Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
HAS_SKLEARN = importlib.util.find_spec("sklearn") is not None


def _polynomial() -> tuple[Kernel, str]:
    if not HAS_SKLEARN:
        return lambda x, y: np.array([[(u @ v / DIM + 1) ** 3 for v in y] for u in x]), "its definition, in a loop"
    from sklearn.metrics.pairwise import polynomial_kernel

    return lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / DIM, coef0=1), "sklearn polynomial_kernel"


def _gaussian(width: float) -> tuple[Kernel, str]:
    if not HAS_SKLEARN:
        squares = scipy.spatial.distance.cdist
        return lambda x, y: np.exp(-squares(x, y, "sqeuclidean") / (2 * width**2)), "scipy.spatial.distance.cdist"
    from sklearn.metrics.pairwise import rbf_kernel

    return lambda x, y: rbf_kernel(x, y, gamma=1 / (2 * width**2)), "sklearn rbf_kernel"


def _limit() -> Row:
    """Of normal distributions whose distance has a closed form; the mean over draws."""
    rng, found = np.random.default_rng(0), []
    for _ in range(300):
        rows = [rng.normal(size=(60, 1, 6)) * scale + shift for scale, shift in ((1.5, 0.4), (1.0, 0.0))]
        found.append(frechet._intercept(*(set_of(list(side.astype(np.float32))) for side in rows), rng))
    return Row("frechet_limit", float(np.mean(found)), 6 * (0.4**2 + 0.5**2), "closed form of two normal distributions")


def _recall() -> Row:
    """Ranks by the primal ridge system, a clip at a time."""
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(60, 8)) @ rng.normal(size=(8, recall.TEXT_WIDTH))
    shown = texts @ rng.normal(size=(recall.TEXT_WIDTH, 30)) / 20
    folds = np.arange(60) % recall.FOLDS
    sides = []
    for _ in range(2):
        visual = shown + 12 * rng.normal(size=shown.shape)
        rows = np.concatenate([visual, folds[:, None], texts], axis=1).astype(np.float32)
        sides.append(set_of([row[None] for row in rows]))
    ours = float(np.mean(recall.ranks(*sides) < 5))
    return Row("text_recall_at_5", ours, float(np.mean(_ranks_in_a_loop(*sides) < 5)), "its definition, in a loop")


def _ranks_in_a_loop(made: Set, real: Set) -> np.ndarray:
    width, ranks = recall.TEXT_WIDTH, []
    a, b = (side.rows_MxD.astype(np.float64) for side in (made, real))
    for row in a:
        fit = b[b[:, -width - 1] != row[-width - 1]]
        x, y = fit[:, : -width - 1], fit[:, -width:]
        z = (x - x.mean(0)) / x.std(0)
        strength = recall.RIDGE * np.trace(z @ z.T) / len(z)
        weights = np.linalg.solve(z.T @ z + strength * np.eye(z.shape[1]), z.T @ (y - y.mean(0)))
        guess = ((row[: -width - 1] - x.mean(0)) / x.std(0)) @ weights
        asked = a[a[:, -width - 1] == row[-width - 1]][:, -width:]
        near = [1 - scipy.spatial.distance.cosine(guess, text - y.mean(0)) for text in asked]
        own = 1 - scipy.spatial.distance.cosine(guess, row[-width:] - y.mean(0))
        ranks.append(sum(value > own + 1e-9 for value in near))
    return np.array(ranks)


# ---------------------------------------------------------------------------------- of clips and pairs


def pictures() -> tuple[np.ndarray, np.ndarray]:
    """A frame, and it with noise, uint8 [96, 96, 3]."""
    truth = skimage.data.astronaut()[40:136, 180:276]
    return truth, np.clip(truth + np.random.default_rng(0).normal(0, 15, truth.shape), 0, 255).astype(np.uint8)


def of_pairs() -> Iterator[Row]:
    truth, other = pictures()
    by = "skimage.metrics."
    want = skimage.metrics.peak_signal_noise_ratio(truth, other, data_range=255)
    yield Row("psnr_db", pixels.clip_psnr(truth[None], other[None]), want, by + "peak_signal_noise_ratio")
    want, full = skimage.metrics.structural_similarity(
        truth, other, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
    )  # fmt: skip
    yield Row(
        "ssim", pixels.clip_ssim(truth[None], other[None]), float(full[5:-5, 5:-5].mean()), by + "structural_similarity"
    )
    yield Row(
        "ms_ssim", float(ms_ssim.ms_ssim(truth[None], other[None])[0]), _ms_ssim(truth, other), "scipy.ndimage filters"
    )
    yield from _sounds()


def _ms_ssim(truth: np.ndarray, other: np.ndarray) -> float:
    def blur(z: np.ndarray) -> np.ndarray:
        return scipy.ndimage.gaussian_filter(z, (1.5, 1.5, 0), truncate=5 / 1.5)[5:-5, 5:-5]

    x, y, product = truth.astype(float), other.astype(float), 1.0
    weights = np.array(ms_ssim.WEIGHTS[:4])
    for scale, weight in enumerate(weights / weights.sum()):
        mx, my = blur(x), blur(y)
        vx, vy, cov = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        factor = (2 * cov + 58.5225) / (vx + vy + 58.5225)
        if scale == 3:
            factor = factor * (2 * mx * my + 6.5025) / (mx**2 + my**2 + 6.5025)
        product *= factor.mean() ** weight
        x, y = (z.reshape(len(z) // 2, 2, len(z) // 2, 2, 3).mean((1, 3)) for z in (x, y))
    return float(product)


def _sounds() -> Iterator[Row]:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=16_000) * 0.1
    other = 0.7 * truth + 0.02 * rng.normal(size=16_000)
    t, o = truth - truth.mean(), other - other.mean()
    gain = scipy.linalg.lstsq(t[:, None], o)[0][0]
    want = 10 * np.log10(np.var(gain * t) / np.var(o - gain * t))
    yield Row("SI-SDR_db", sounds.si_sdr_db(truth, other), float(want), "scipy.linalg.lstsq")
    video = rng.integers(0, 256, (9, 8, 8, 3), np.uint8)
    heard = (rng.normal(size=18_000) * np.repeat(rng.uniform(0, 3000, 9), 2000)).astype(np.int16)
    light = video.astype(float).mean(-1)
    rises = [np.clip(b - a, 0, None).mean() for a, b in itertools.pairwise(light)]
    want = scipy.stats.pearsonr(rises, onsets.onset_strength(heard, 9)[:-1]).statistic
    yield Row("onset_agreement", onsets.agreement(video, heard), float(want), "scipy.stats.pearsonr")


def of_clips() -> Iterator[Row]:
    picture = skimage.data.astronaut()[::2, ::2]
    video = np.stack([picture[60:124, 60 + 2 * t : 124 + 2 * t] for t in range(4)])
    yield Row("warping_error_levels", temporal.warping_error(video), _warping(video), "scipy.ndimage.map_coordinates")
    want = np.mean([np.abs(b.astype(float) - a).mean() for a, b in itertools.pairwise(video)])
    yield Row("change_levels", float(temporal.changes(video).mean()), float(want), "its definition, in a loop")
    ids = np.random.default_rng(0).integers(0, 64, 500) ** 2 // 64
    found = codes.statistics(ids, 64)
    counts = np.unique(ids, return_counts=True)[1]
    yield Row("entropy_bits", found["entropy_bits"], scipy.stats.entropy(counts, base=2), "scipy.stats.entropy")
    yield Row("codes_used", found["codes_used"], len(set(ids.tolist())), "a set")


def _warping(video: np.ndarray) -> float:
    """With the same motion, of which OpenCV is the only implementation here."""
    spec, found = ConditioningSpec(), []
    forward, backward = flow(video, spec), flow(video[::-1], spec)[::-1]
    for now in range(len(video) - 1):
        rows, columns = np.indices(video.shape[1:3]).astype(float)
        places = [rows + forward[now][..., 1], columns + forward[now][..., 0]]

        def at(channel: np.ndarray) -> np.ndarray:
            return scipy.ndimage.map_coordinates(channel.astype(float), places, order=1, mode="nearest")

        back = np.stack([at(backward[now][..., k]) for k in (0, 1)], axis=-1)
        sizes = (forward[now] ** 2).sum(-1) + (back**2).sum(-1)
        seen = ((forward[now] + back) ** 2).sum(-1) < 0.01 * sizes + 0.5
        moved = np.stack([at(video[now + 1][..., k]) for k in range(3)], axis=-1)
        found.append(np.abs(moved - video[now])[seen].ravel())
    return float(np.concatenate(found).mean())


# ------------------------------------------------------------------------------------------ the table


def rows() -> list[Row]:
    """Every metric."""
    return [*of_sets(), *of_pairs(), *of_clips()]


def table(found: list[Row]) -> str:
    """Markdown."""
    lines = ["| metric | here | there | difference | by |", "|---|---|---|---|---|"]
    return "\n".join(
        lines + [f"| `{r.metric}` | {r.ours:.7g} | {r.other:.7g} | {r.difference:.1e} | {r.by} |" for r in found]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help=f"put the table into {PAGE.name}")
    made = table(rows())
    print(made)
    if parser.parse_args().write:
        text = PAGE.read_text()
        PAGE.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n{made}\n{END}{text.split(END)[1]}")


if __name__ == "__main__":
    main()
