"""Windows against a dense oracle: full attention under a mask of who shares a window."""

from __future__ import annotations

import numpy as np
import pytest
from attention_oracle import dense

from poet.models import windows
from poet.spec import UserError

KV, GROUP, HEAD = 2, 2, 4
# Paper's windows (spec §1.14), a grid that they do not divide, and windows larger than the grid.
CASES = {
    "tall": ((2, 8, 6), (1, 0, 2)),
    "wide": ((2, 8, 6), (1, 4, 0)),
    "long": ((5, 4, 4), (5, 2, 2)),
    "filled": ((3, 6, 10), (2, 4, 4)),
    "larger": ((2, 4, 4), (5, 8, 8)),
}


def numbers(part: windows.Partition, step: int = 1) -> np.ndarray:
    """Window of each position of the grid, by its definition."""
    cells = np.indices(part.grid).reshape(3, -1).T // part.window
    return cells @ np.array([10_000, 100, 1])


@pytest.mark.parametrize("name", CASES)
def test_windows_hold_every_position_once(name):
    grid, window = CASES[name]
    part = windows.partition(grid, window, 2)
    positions = np.arange(1, 1 + np.prod(grid))[None]
    cut = part.cut(positions)
    np.testing.assert_array_equal(part.join(cut), positions)
    np.testing.assert_array_equal(np.sort(cut[cut > 0]), positions[0])
    np.testing.assert_array_equal(cut.reshape(part.shape) > 0, part.real)
    for row in cut.reshape(part.shape):
        assert len(set(numbers(part)[row[row > 0] - 1])) == 1


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("across", [False, True], ids=["own", "coarser"])
def test_attention_is_dense_attention_within_windows(name, across):
    grid, window = CASES[name]
    high = windows.partition(grid, window, 2)
    keys = windows.coarser(high, 2) if across else high
    rng = np.random.default_rng(0)
    q = rng.normal(size=(2, np.prod(high.grid), KV, GROUP, HEAD)).astype(np.float32)
    k, v = rng.normal(size=(2, 2, np.prod(keys.grid), KV, HEAD)).astype(np.float32)
    ours = high.join(windows.attend(high.cut(q), keys.cut(k), keys.cut(v), high, keys))
    visible = numbers(high)[:, None] == numbers(keys)[None]
    assert visible.any(axis=1).all()
    np.testing.assert_allclose(ours, dense(q, k, v, visible[None]), atol=2e-6)


def test_paper_windows_have_the_sizes_of_the_paper():
    """(5, 56, 32) latents: 224, 256 and 320 positions, and windows of half the sides over (5, 28, 16)."""
    parts = [windows.partition((5, 56, 32), w, 2) for w in ((1, 0, 4), (1, 8, 0), (5, 8, 8))]
    assert [p.shape[1] for p in parts] == [224, 256, 320]
    assert [windows.coarser(p, 2).window for p in parts] == [(1, 28, 2), (1, 4, 16), (5, 4, 4)]
    assert all(p.shape[0] == windows.coarser(p, 2).shape[0] and p.real.all() for p in parts)


def test_places_of_both_grids_agree():
    """A coarse cell stands in the middle of the four that it stands for."""
    high = windows.partition((2, 4, 6), (0, 0, 0), 2)
    fine, coarse = high.places(), windows.coarser(high, 2).places(2)
    for t, h, w in np.ndindex(2, 2, 3):
        own = [(t * 4 + 2 * h + a) * 6 + 2 * w + b for a in (0, 1) for b in (0, 1)]
        np.testing.assert_array_equal(fine[own].mean(axis=0), coarse[(t * 2 + h) * 3 + w])


@pytest.mark.parametrize("grid, window", [((1, 3, 4), (1, 0, 2)), ((1, 4, 4), (1, 3, 4))])
def test_what_has_no_half_is_refused(grid, window):
    with pytest.raises(UserError, match="multiples of 2"):
        windows.partition(grid, window, 2)
