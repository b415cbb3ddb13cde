"""The section of a gallery with upscaled clips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from poet import media
from poet.evaluation.gallery.studio import Made, Row, Studio, write
from poet.media.watermark import Marker
from poet.sampling import larger, superres
from poet.spec import UserError
from poet.tasks.registry import SUPER_RESOLUTION


@dataclasses.dataclass(frozen=True, kw_only=True)
class UpscaleSection:
    """Clips by super-resolution networks."""

    title: str = "Upscaling"
    says: str = "The clips at twice their height and width, or more, by super-resolution networks."
    scored_by: str = SUPER_RESOLUTION

    def make(self, studio: Studio, folder: Path) -> Made:
        """As `TaskSection.make`."""
        if not studio.upscale:
            raise UserError("no super-resolution weights: give them by --upscale=CHECKPOINT")
        networks = [one for run in studio.upscale for one in larger.load(run)]
        form = studio.resolved.spec.clip
        video = np.stack([media.read_clip(clip.path, form).video for clip in studio.clips])
        networks[0].check(video.shape)
        rows = [[write(studio, folder / f"{n:02d}_clip", "the clip", clip)] for n, clip in enumerate(video)]
        for seed in range(studio.seeds):
            clips = superres.chained(networks, video, studio.prompts, seed=seed)
            marker = Marker.of_size(*clips[0].shape[1:3], studio.sample.unmarked)
            for n, clip in enumerate(clips):
                rows[n].append(write(studio, folder / f"{n:02d}_seed{seed}", f"seed {seed}", clip, marker=marker))
        made = tuple(Row(heading=text, items=tuple(row)) for text, row in zip(studio.prompts, rows))
        return Made(rows=made, watermark=str(marker))
