"""Pictures of sounds: spectrograms of several renderings, one below the other."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from poet.media.files import replacing

WINDOW, HOP = 512, 128
# Lower bound of the colour scale, below full scale.
FLOOR_DB = -90.0
PANEL_INCHES = (4.2, 1.5)
DPI = 100


def magnitude_db(sound_S: np.ndarray) -> np.ndarray:
    """float64 (WINDOW // 2 + 1, frames) in dB of full scale, FLOOR_DB at least; Hann windows.

    `sound_S` is float in [-1, 1]; one shorter than a window is padded with silence.
    """
    padded = np.pad(sound_S, (0, max(WINDOW - len(sound_S), 0)))
    window = np.hanning(WINDOW + 1)[:-1]
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    magnitudes = np.abs(np.fft.rfft(frames * window)).T * (2 / window.sum())
    return 20 * np.log10(np.maximum(magnitudes, 10 ** (FLOOR_DB / 20)))


def write_spectrograms(
    path: pathlib.Path, sounds: Sequence[Mapping[str, np.ndarray]], rate_hz: int, title: str = ""
) -> None:
    """Writes a PNG: a column for each sound, a row for each of its renderings by label.

    Every mapping has the same labels; the sounds are float in [-1, 1], (S,).
    """
    from matplotlib.figure import Figure

    rows, columns = len(sounds[0]), len(sounds)
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * columns + 1, height * rows + 0.8), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharex="col", sharey=True)
    for column, renderings in enumerate(sounds):
        for row, (label, sound) in enumerate(renderings.items()):
            panel = axes[row, column]
            extent = (0, len(sound) / rate_hz, 0, rate_hz / 2000)
            panel.imshow(
                magnitude_db(sound), origin="lower", aspect="auto", extent=extent, vmin=FLOOR_DB, vmax=0, cmap="magma"
            )
            if column == 0:
                panel.set_ylabel(f"{label}\nkHz", fontsize=8)
        axes[-1, column].set_xlabel("s", fontsize=8)
    figure.suptitle(title, fontsize=10)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=DPI)
