"""Every metric agrees with an independent implementation (`tests/benchmarks/metric_agreement.py`)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import metric_agreement  # noqa: E402

# The limit is a mean over draws, whose error is a few hundredths.
LOOSE = {"frechet_limit": 0.05}


@pytest.fixture(scope="module")
def rows() -> list[metric_agreement.Row]:
    return metric_agreement.rows()


def test_every_metric_is_what_another_implementation_says(rows: list[metric_agreement.Row]) -> None:
    assert len(rows) > 15
    for row in rows:
        assert row.difference <= LOOSE.get(row.metric, 1e-5), row
        # Where both are 0 or 1, agreement would say nothing.
        assert row.other not in (0, 1), row


def test_the_page_names_every_metric_of_the_table(rows: list[metric_agreement.Row]) -> None:
    text = metric_agreement.PAGE.read_text()
    part = text.split(metric_agreement.BEGIN)[1].split(metric_agreement.END)[0]
    assert all(f"| `{row.metric}` |" in part for row in rows)
