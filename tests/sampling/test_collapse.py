"""Collapsed samples are found by their codes, and named."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

from poet.sampling.collapse import findings


def tokens(change) -> np.ndarray:
    """Two samples of random codes [3, 4, 4], the second one changed."""
    layout, codes = tiny.layout_of("unconditional"), np.random.default_rng(0).integers(0, 64, (2, 3, 4, 4))
    change(codes[1])
    return layout.assemble({"source": np.zeros((2, 1), np.int32), "video": codes.reshape(2, -1).astype(np.int32)})


def freeze(codes):
    codes[1:] = codes[0]


def freeze_last(codes):
    codes[2] = codes[1]


def tile(codes):
    codes[1, :, 2:] = codes[1, :, :2]


def one_code(codes):
    codes[:] = 5


@pytest.mark.parametrize(
    "change, words",
    [
        (freeze, ["video: frozen from latent frame 0 on"]),
        (freeze_last, []),
        (tile, ["video: tiled, the same after 2 columns of codes, in 1 of 3 latent frames"]),
        (
            one_code,
            [
                "video: frozen from latent frame 0 on",
                "video: tiled, the same after 1 columns of codes, in 3 of 3 latent frames",
            ],
        ),
    ],
)
def test_what_collapsed_is_named_and_nothing_else(change, words):
    assert findings(tiny.layout_of("unconditional"), tokens(change)) == [[], words]
