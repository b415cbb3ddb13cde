"""The protocol of metrics: sums that do not know their order, intervals, and a metric that is one file."""

from __future__ import annotations

import fractions
import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from poet.evaluation import checkpoint_tables, metric, metrics, record
from poet.evaluation.metric import GROUPS, PLACES, Batch, Metric, Sums, Values
from poet.spec import UserError

EXAMPLES, DIM = 40, 5


def features(seed: int = 0) -> np.ndarray:
    """float64 (EXAMPLES, DIM) over many magnitudes, whose plain sums depend on their order."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(EXAMPLES, DIM)) * 10.0 ** rng.integers(-6, 6, (EXAMPLES, DIM))


def shards(fields: Mapping[str, np.ndarray], cuts: int, seed: int) -> list[Batch]:
    """The examples in any order, in so many batches that know their places."""
    order = np.random.default_rng(seed).permutation(EXAMPLES)
    return [{PLACES: part, **{name: x[part] for name, x in fields.items()}} for part in np.array_split(order, cuts)]


def a_metric(measure: Any, **more: Any) -> Metric:
    return Metric(name="it", better="less", tables=(), needs=("x",), measure=measure, **more)


MOMENTS = a_metric(
    lambda batch: Sums.of(batch, 8, x=batch["x"], n=np.ones(len(batch["x"]), np.int64)),
    finish=lambda totals: float((totals["x"] / totals["n"]).sum()),
)
MEAN = a_metric(lambda batch: Values.of(batch, [row.sum() for row in batch["x"]]))


@pytest.mark.parametrize("one", [MOMENTS, MEAN], ids=["sums", "values"])
def test_any_order_any_batches_and_any_shards_give_the_same_bits(one: Metric) -> None:
    fields, found = {"x": features(), GROUPS: np.arange(EXAMPLES) // 3}, []
    for cuts, seed in ((1, 0), (2, 1), (8, 2), (EXAMPLES, 3)):
        batches = shards(fields, cuts, seed)
        states = [
            metric.walk([{"row": b} for b in half], [one])["row"]["it"].state
            for half in (batches[::2], batches[1::2])
            if half
        ]
        merged = states[0] if len(states) == 1 else states[1].merge(states[0])
        found.append(merged.summary(one.finish))
    assert len(set(found)) == 1, found
    summary = found[0]
    assert summary.n == EXAMPLES and summary.low < summary.value < summary.high
    assert len({x.sum() for x in (features()[:, 0], features()[::-1, 0].copy(), np.sort(features()[:, 0]))}) > 1


def test_sums_of_floats_are_exact_to_their_smallest_unit() -> None:
    totals = Sums.of({}, 4, x=features()).totals()["x"]
    for column, total in zip(features().T, totals):
        exact = sum(map(fractions.Fraction, column.tolist()))
        assert abs(fractions.Fraction(total) - exact) <= abs(exact) * fractions.Fraction(2) ** -50
    with pytest.raises(UserError, match="finite"):
        Sums.of({}, x=np.array([1.0, np.nan]))


def test_an_example_that_two_shards_have_counts_once() -> None:
    whole = Values.of({}, np.arange(4.0))
    again = Values.of({PLACES: [2, 3]}, [2.0, 3.0])
    assert whole.merge(again).summary() == whole.summary()


def test_what_finish_makes_of_a_mean_keeps_its_interval() -> None:
    values = Values.of({}, np.random.default_rng(0).uniform(1, 2, 50))
    plain, falling = values.summary(), values.summary(lambda mean: -mean)
    assert (falling.low, falling.high) == (-plain.high, -plain.low) and falling.error is None
    assert Values.of({}, [1.0], [0]).summary() == metric.Summary(value=None)


def test_a_frechet_distance_is_sums_and_a_finish() -> None:
    """As it is for metrics of features: streaming means and covariances against scipy on all at once."""
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(EXAMPLES, DIM)), 1.5 * rng.normal(size=(EXAMPLES, DIM)) + 0.3

    def measure(batch: Batch) -> Sums:
        moments = {f"{k}1": batch[k] for k in "ab"}
        moments |= {f"{k}2": batch[k][:, :, None] * batch[k][:, None] for k in "ab"}
        return Sums.of(batch, 8, n=np.ones(len(batch["a"]), np.int64), **moments)

    def finish(totals: Mapping[str, np.ndarray]) -> float:
        n, sides = totals["n"], []
        for k in "ab":
            mean = totals[f"{k}1"] / n
            sides.append((mean, (totals[f"{k}2"] - n * np.outer(mean, mean)) / (n - 1)))
        (m, c), (m_, c_) = sides
        return float(((m - m_) ** 2).sum() + np.trace(c + c_ - 2 * scipy.linalg.sqrtm(c @ c_).real))

    frechet = Metric(name="frechet", better="less", tables=(), needs=("a", "b"), measure=measure, finish=finish)
    batches = shards({"a": real, "b": made}, 6, 1)
    found = metric.walk([{0: b} for b in batches], [frechet])[0]["frechet"].summary
    c, c_ = np.cov(real.T), np.cov(made.T)
    want = ((real.mean(0) - made.mean(0)) ** 2).sum() + np.trace(c + c_ - 2 * scipy.linalg.sqrtm(c @ c_).real)
    assert found.value == pytest.approx(want) and found.low < found.high and found.n == EXAMPLES


def test_metrics_that_share_a_measure_look_once_and_lack_nothing_they_do_not_need() -> None:
    looked = []

    def measure(batch: Batch) -> Values:
        looked.append(batch)
        return Values.of(batch, batch["x"])

    one, other = (
        Metric(name=name, better="more", tables=(), needs=("x",), measure=measure, finish=finish)
        for name, finish in (("one", None), ("other", abs))
    )
    lacking = Metric(name="lacking", better="more", tables=(), needs=("y",), measure=lambda batch: 1 / 0)
    row = metric.columns(metric.measure({"x": [-1.0, -3.0]}, [one, other, lacking]))
    assert len(looked) == 1
    assert (row["one"], row["other"], row["lacking"]) == (-2, 2, None)


NEW = """
    '''Brightness, as an example of a metric that is one file.'''

    import numpy as np

    from poet.evaluation.metric import Metric, Values, register


    def _measure(batch):
        return Values.of(batch, [abs(a.mean() - b.mean()) for a, b in zip(batch["truth"], batch["other"])])


    register(Metric(
        name="brightness_error", better="less", tables=("frame_prediction",), needs=("truth", "other"),
        measure=_measure, note="Difference of mean values.", protocol={"range": 255},
    ))
"""


def test_a_new_metric_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands in the table that it names, in JSON with its manifest, and in the text."""
    (tmp_path / "brightness.py").write_text(textwrap.dedent(NEW))
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(metric, "METRICS", dict(metric.METRICS))
    metrics.load()
    truth = np.full((3, 4, 12, 12, 3), 100, np.uint8)
    table = checkpoint_tables.compare({"true": truth, "repeat": truth + np.uint8(7)}, 1)
    found = record.content({}, {"frame_prediction": table}, {})
    (row,) = json.loads(json.dumps(found))["metrics"]["frame_prediction"]["rows"]
    assert row["brightness_error"] == 7 and row["brightness_error_low"] == row["brightness_error_high"] == 7
    assert found["metrics"]["frame_prediction"]["manifests"]["brightness_error"] == {
        "better": "less",
        "note": "Difference of mean values.",
        "range": 255,
    }
    assert "brightness error" in record.text(found)


def test_two_metrics_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="psnr_db"):
        metric.register(metric.METRICS["psnr_db"])
