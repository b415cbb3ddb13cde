"""Metrics of whole sets against independent implementations, on the same arrays; the rules by which they refuse."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.special

from poet.evaluation import features, metric, metrics, samples
from poet.evaluation.features import Features
from poet.evaluation.metric import GROUPS, PLACES, Batch, Metric, Summary
from poet.evaluation.metrics import frechet, kernels, recall
from poet.evaluation.samples import REFERENCE, SIDE, SUBMISSION, Set, field_of

DIM, CLIPS = 6, 24
WEIGHTS = np.random.default_rng(9).normal(size=(DIM, 5)).astype(np.float32)
# A network that is there already: the vectors are the test's.
NETWORK = Features(
    name="stand_in",
    prefix="it",
    medium="frames",
    width=DIM,
    fingerprint="0" * 16,
    reads={"size": [4, 4]},
    run=lambda vectors: vectors,
    classify=lambda vectors_NxD: vectors_NxD @ WEIGHTS,
)


def vectors(seed: int, clips: int = CLIPS, each: int = 2, shift: float = 0.0) -> list[np.ndarray]:
    """float32 [each, DIM] of each clip: alike within a clip."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clips, 1, DIM)) + shift
    return list((centres + 0.3 * rng.normal(size=(clips, each, DIM))).astype(np.float32))


def batches(made: Sequence[np.ndarray], real: Sequence[np.ndarray], cuts: int = 1, seed: int = 0) -> list[dict]:
    """Steps of `metric.walk`: the clips of both sides in any order, in so many batches a side."""
    rng, steps = np.random.default_rng(seed), []
    for side, rows in ((SUBMISSION, made), (REFERENCE, real)):
        order = np.arange(len(rows)) if cuts == 1 else rng.permutation(len(rows))
        for part in np.array_split(order, cuts):
            steps.append({SIDE: side, PLACES: part, field_of("it"): [rows[i] for i in part]})
    return [{"row": steps[i]} for i in (range(len(steps)) if cuts == 1 else rng.permutation(len(steps)))]


def all_metrics() -> list[Metric]:
    return metrics.of_features(NETWORK, "sets") + metrics.of_features(NETWORK, "clips")


def summaries(steps: list[dict], chosen: Sequence[Metric]) -> dict[str, Summary]:
    return {name: each.summary for name, each in metric.walk(steps, chosen)["row"].items()}


@pytest.fixture(scope="module")
def found() -> dict[str, Summary]:
    return summaries(batches(vectors(0), vectors(1, shift=0.5)), all_metrics())


def test_every_metric_of_a_network_is_made_of_its_vectors(found: dict[str, Summary]) -> None:
    names = ("frechet", "frechet_limit", "kernel_polynomial", "kernel_gaussian", "diversity", "class_score")
    assert set(found) == {f"it_{name}" for name in names}
    for name, summary in found.items():
        assert summary.low < summary.value < summary.high and summary.n == CLIPS, name
    for each in all_metrics():
        assert each.manifest["networks"] == {"stand_in": "0" * 16} and each.manifest["network"]["size"] == [4, 4]


def test_any_order_any_batches_and_any_shards_give_the_same_bits(found: dict[str, Summary]) -> None:
    made, real = vectors(0), vectors(1, shift=0.5)
    for cuts, seed in ((2, 1), (7, 2), (CLIPS, 3)):
        steps = batches(made, real, cuts, seed)
        assert summaries(steps, all_metrics()) == found
        halves = [metric.walk(half, all_metrics())["row"] for half in (steps[::2], steps[1::2])]
        for name in found:
            one, other = (half[name] for half in halves)
            assert other.state.merge(one.state).summary(one.metric.finish) == found[name]


def test_the_frechet_distance_is_that_of_scipy_s_matrix_root(found: dict[str, Summary]) -> None:
    a, b = np.concatenate(vectors(0)).astype(np.float64), np.concatenate(vectors(1, shift=0.5)).astype(np.float64)
    c, c_ = np.cov(a.T), np.cov(b.T)
    want = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c + c_ - 2 * scipy.linalg.sqrtm(c @ c_).real)
    assert found["it_frechet"].value == pytest.approx(want, rel=1e-9)


def test_a_singular_covariance_has_a_distance() -> None:
    rows = np.random.default_rng(0).normal(size=(20, DIM))
    rows[:, 2] = rows[:, 1]  # As of a unit that never fires apart.
    flat = frechet.moments(rows)
    assert frechet.distance(flat, flat) == pytest.approx(0, abs=1e-6)
    wide = frechet.Moments(flat.mean + 1, flat.covariance * 4)
    assert frechet.distance(flat, wide) == pytest.approx(DIM + np.trace(flat.covariance), rel=1e-6)


def test_times_of_resamples_are_repeated_rows() -> None:
    rows, times = np.concatenate(vectors(0)), np.random.default_rng(0).integers(0, 4, 2 * CLIPS)
    weighted, repeated = frechet.moments(rows, times), frechet.moments(np.repeat(rows, times, axis=0))
    np.testing.assert_allclose(weighted.mean, repeated.mean)
    np.testing.assert_allclose(weighted.covariance, repeated.covariance)


@pytest.mark.parametrize("kind", ["kernel_polynomial", "kernel_gaussian"])
def test_kernel_distances_are_sums_over_pairs_of_different_clips(found: dict[str, Summary], kind: str) -> None:
    a, b = vectors(0), vectors(1, shift=0.5)
    apart = [scipy.spatial.distance.cdist(x, y) for x, y in itertools.combinations(b, 2)]
    width = np.median(np.concatenate(apart, axis=None))

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        x, y = x.astype(np.float64), y.astype(np.float64)
        if kind == "kernel_polynomial":
            return ((x @ y.T / DIM + 1) ** 3).mean()
        return np.exp(-scipy.spatial.distance.cdist(x, y, "sqeuclidean") / (2 * width**2)).mean()

    within = [np.mean([kernel(x, y) for x, y in itertools.permutations(side, 2)]) for side in (a, b)]
    want = sum(within) - 2 * np.mean([kernel(x, y) for x in a for y in b])
    assert found[f"it_{kind}"].value == pytest.approx(want, rel=1e-6)


def test_kernel_distances_of_one_distribution_are_0_in_the_mean_and_their_intervals_hold_it() -> None:
    """300 draws: a distance with a bias of a few hundredths, or intervals of half the width, would fail."""
    values, held = [], 0
    for seed in range(300):
        a, b = (side_of(vectors(2 * seed + k, clips=10)) for k in (0, 1))
        summary = kernels.kad(a, b)
        values.append(summary.value)
        held += summary.low <= 0 <= summary.high
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(300)
    assert held > 250


def side_of(rows: Sequence[np.ndarray]) -> Set:
    return samples.Samples.of({}, rows).set_of(SUBMISSION)


def test_the_limit_has_no_bias_where_the_distance_has() -> None:
    """Of equal distributions: 0."""
    finite, limit = [], []
    for seed in range(20):
        a, b = (side_of(vectors(1000 + 2 * seed + k, clips=40, each=1)) for k in (0, 1))
        finite.append(frechet.distance(frechet.moments(a.rows_MxD), frechet.moments(b.rows_MxD)))
        rng = np.random.default_rng(seed)
        limit.append(np.mean([frechet._intercept(a, b, rng) for _ in range(frechet.ORDERS)]))
    assert np.mean(finite) > 0.3 and abs(np.mean(limit)) < 0.1


def test_diversity_and_classes_are_those_of_brute_force(found: dict[str, Summary]) -> None:
    rows = [x.astype(np.float64) for x in vectors(0)]
    assert found["it_diversity"].value == pytest.approx(scipy.spatial.distance.pdist([x.mean(0) for x in rows]).mean())
    p = scipy.special.softmax(np.concatenate(rows) @ WEIGHTS, axis=1)
    want = np.exp(scipy.special.rel_entr(p, p.mean(0)).sum(axis=1).mean())
    assert found["it_class_score"].value == pytest.approx(want, rel=1e-6)


def test_too_few_clips_or_vectors_are_refused_and_the_kernel_distances_stand_in() -> None:
    few = summaries(batches(vectors(0, clips=3), vectors(1)), all_metrics())
    assert few["it_frechet"].value is None and "6 vectors of 6 dimensions" in few["it_frechet"].why
    assert few["it_kernel_polynomial"].value is not None and few["it_kernel_gaussian"].value is not None
    nearly = summaries(batches(vectors(0, clips=5), vectors(1)), all_metrics())
    assert nearly["it_frechet"].value is not None and nearly["it_frechet_limit"].value is None
    alone = summaries(batches(vectors(0, clips=1), vectors(1)), all_metrics())
    assert all(summary.value is None and "at least 2" in summary.why for summary in alone.values())


def test_dependent_clips_are_resampled_together() -> None:
    """Copies of each clip under one group: the interval stays as wide as that of the clips."""
    rows = vectors(0, each=1)
    copies = samples.Samples.of({GROUPS: np.repeat(np.arange(CLIPS), 4), PLACES: np.arange(4 * CLIPS)}, rows_of(rows))
    apart = samples.Samples.of({PLACES: np.arange(4 * CLIPS)}, rows_of(rows))
    real = side_of(vectors(1, clips=300))
    together, loose = (kernels.kid(one.set_of(SUBMISSION), real) for one in (copies, apart))
    assert together.error > 1.3 * loose.error


def test_the_interval_of_few_films_holds_the_value() -> None:
    """Clips of a film are alike, so that a resample with a film twice is farther from the reference."""
    rng, films = np.random.default_rng(0), np.arange(CLIPS) // 6
    rows = [x + 3 * shift.astype(np.float32) for x, shift in zip(vectors(0), rng.normal(size=(4, 1, DIM))[films])]
    one = samples.Samples.of({GROUPS: films, PLACES: np.arange(CLIPS)}, rows).set_of(SUBMISSION)
    for finish in (kernels.kid, kernels.kad):
        summary = finish(one, one)
        assert summary.low < summary.value < summary.high


def rows_of(rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [row for row in rows for _ in range(4)]


# ------------------------------------------------------------------------------------------- texts


def clips_with_texts(seed: int, texts: np.ndarray, right: bool = True) -> Batch:
    """Vectors that a fixed linear map makes of texts, with noise; texts of other clips where not `right`."""
    rng = np.random.default_rng(seed)
    maps = [np.random.default_rng(k).normal(size=(recall.TEXT_WIDTH, width)) for k, width in ((1, 40), (2, 30))]
    shown = texts if right else texts[rng.permutation(len(texts))]
    frames, motion = ([(row @ m + rng.normal(size=m.shape[1]))[None].astype("f") for row in shown] for m in maps)
    captions = [f"text {i}" for i in range(len(texts))]
    return dict(zip(recall.NEEDS, (frames, motion, [row[None].astype("f") for row in texts], captions)))


def test_texts_are_found_where_clips_show_them_and_at_chance_where_not() -> None:
    # Texts of a space of few dimensions, such as the captions of one game.
    rng = np.random.default_rng(0)
    texts = rng.normal(size=(120, 12)) @ rng.normal(size=(12, recall.TEXT_WIDTH))
    real = clips_with_texts(1, texts) | {SIDE: REFERENCE}
    chosen = [metric.METRICS[f"text_recall_at_{k}"] for k in (1, 5, 10)]
    for right in (True, False):
        steps = [{"row": real}, {"row": clips_with_texts(2, texts, right) | {SIDE: SUBMISSION}}]
        at_1, at_5, at_10 = (each.summary.value for each in metric.walk(steps, chosen)["row"].values())
        chance = recall.chance(metric.walk(steps, chosen)["row"]["text_recall_at_1"].state.set_of(SUBMISSION), 10)
        assert at_1 <= at_5 <= at_10
        assert at_10 > 0.9 if right else abs(at_10 - chance) < 0.15
    few = summaries([{"row": real}, {"row": clips_with_texts(2, texts[:9]) | {SIDE: SUBMISSION}}], chosen)
    assert few["text_recall_at_1"].value is None and "9 different texts" in few["text_recall_at_1"].why


def test_few_clips_are_ranked_among_the_texts_of_both_sets() -> None:
    """Against an augmented least squares fit and a count in a loop, of clips whose texts the reference has, too."""
    rng = np.random.default_rng(3)
    texts = rng.normal(size=(80, 6)) @ rng.normal(size=(6, recall.TEXT_WIDTH))
    batches = clips_with_texts(4, texts) | {SIDE: REFERENCE}, clips_with_texts(5, texts[:25]) | {SIDE: SUBMISSION}
    names = ["text_recall_at_10", f"{recall.AMONG_ALL}10"]
    found = metric.walk([{"row": batch} for batch in batches], [metric.METRICS[name] for name in names])["row"]
    real, clips = (found[names[1]].state.set_of(side) for side in (REFERENCE, SUBMISSION))
    folds = np.array([recall.fold_of(f"text {i}") for i in range(80)])
    visual = [np.concatenate([np.concatenate(b[name]) for name in recall.NEEDS[:2]], axis=1) for b in batches]
    by_hand = []
    for place in range(25):
        fit = folds != folds[place]
        x, y = visual[0][fit].astype(float), texts[fit].astype("f").astype(float)
        z = (x - x.mean(0)) / x.std(0)
        ridge = np.sqrt(recall.RIDGE * np.square(z).sum() / len(z)) * np.eye(z.shape[1])
        padded = np.concatenate([y - y.mean(0), np.zeros((len(ridge), y.shape[1]))])
        weights = np.linalg.lstsq(np.concatenate([z, ridge]), padded, rcond=None)[0]
        made = (visual[1][place] - x.mean(0)) / x.std(0) @ weights
        others = texts[~fit].astype("f") - y.mean(0)
        cosines = others @ made / np.linalg.norm(others, axis=1)
        own = np.flatnonzero(np.flatnonzero(~fit) == place)[0]
        by_hand.append((cosines > cosines[own]).sum())
    np.testing.assert_array_equal(recall.ranks(clips, real, among_all=True), by_hand)
    assert found[names[1]].summary.value == np.mean(np.array(by_hand) < 10) <= found[names[0]].summary.value
    sizes = np.bincount(folds)
    assert recall.chance(clips, 10, real) == pytest.approx(np.mean([10 / sizes[fold] for fold in folds[:25]]))
    assert recall.chance(clips, 10) > recall.chance(clips, 10, real)


def test_a_text_is_never_ranked_by_a_map_that_was_fitted_on_it() -> None:
    assert {recall.fold_of(f"text {i}") for i in range(40)} == set(range(recall.FOLDS))
    assert recall.fold_of("a") == recall.fold_of("a")


def test_networks_are_found_by_themselves_and_are_called_once() -> None:
    assert {"efficientnet_lite0", "transnetv2", "yamnet", "minilm"} <= set(features.NETWORKS)
    prefixes = [network.prefix for network in features.NETWORKS.values()]
    assert len(set(prefixes)) == len(prefixes) and not {"fvd", "fid", "fad"} & set(prefixes)
    with pytest.raises(ValueError, match="two networks"):
        features.register(next(iter(features.NETWORKS.values())))
