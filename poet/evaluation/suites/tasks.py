"""The tasks of a benchmark: what conditions a sample, what is measured, and which trivial submissions it must beat.

Pixels that the condition holds (opening frames, both ends, what is outside a hole) are those of the true clip in every
submission: they are put there before anything is measured, and PSNR and SSIM are of the frames that have others.

Shape suffixes: T frames, H height, W width, 3 colour channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import numpy as np

from poet.conditioning import regions

# Names of trivial submissions -> what they are.
BASELINES = {
    "last frame": "the last conditioning frame all the time",
    "crossfade": "from one end to the other, a mix of both",
    "mean colour": "the hole in the mean colour of the rest",
    "nearest pixels": "each pixel of the hole as the nearest one outside",
    "smooth fill": "the hole interpolated from its edge, so that each pixel is the mean of its neighbours",
    "training mean": "the mean of all training clips, frame by frame",
    "random training clip": "a training clip by chance",
    "nearest training clip": "the training clip whose first frame is most alike",
    "another clip": "another clip of the list: real, but a wrong pair",
    "silence": "no sound",
    "another sound": "the sound of another clip of the list",
    "commonest caption": "the commonest caption of the training clips",
    "nearest training caption": "the caption of the training clip that is most alike",
    "another caption": "the caption of another clip of the list",
    "shuffled submission": "the submission itself, each of its clips under the name of another one",
}
_OF_TRAINING = ("training mean", "random training clip")
_ANY = (*_OF_TRAINING, "another clip")
_FILLS = ("mean colour", "nearest pixels", "smooth fill")
SHUFFLED = "shuffled submission"
VIDEO, SOUND, TEXT = "video", "sound", "text"
_OPENED = ("last frame", "nearest training clip", "another clip")
REGION = "central"
FRAMES = 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteTask:
    """A task.

    Attributes:
      condition: in words.
      text: whether the caption is part of it.
      known: frames that it holds.
      hole: `inpainting` fills the region, `outpainting` all but the region; '' for no hole.
      metrics: names; the first one is what submissions are ranked by.
      baselines: names of `BASELINES`.
      makes: `VIDEO`, `SOUND` for the true clip, or `TEXT` of it.
    """

    name: str
    condition: str
    text: bool = False
    known: tuple[int, ...] = ()
    hole: str = ""
    metrics: tuple[str, ...]
    baselines: tuple[str, ...]
    makes: str = VIDEO

    @property
    def sound(self) -> bool:
        """Whether sound is made."""
        return self.makes == SOUND

    @property
    def writes(self) -> bool:
        """Whether text is made."""
        return self.makes == TEXT

    def without(self, metrics: Collection[str]) -> SuiteTask:
        """The task without metrics that do not hold on the clips of a list."""
        return dataclasses.replace(self, metrics=tuple(name for name in self.metrics if name not in metrics))

    def given(self, height: int, width: int) -> np.ndarray:
        """bool [T, H, W]: the pixels of the true clip that the condition holds."""
        mask = np.zeros((FRAMES, height, width), bool)
        if self.hole:
            central = regions.area(REGION, mask.shape)
            mask |= central if self.hole == "outpainting" else ~central
        mask[list(self.known)] = True
        return mask

    @property
    def opening(self) -> int:
        """Known frames at the beginning."""
        return next(frame for frame in range(FRAMES + 1) if frame not in self.known)

    @property
    def measured(self) -> list[int]:
        """The frames that have pixels to be made."""
        return [frame for frame in range(FRAMES) if frame not in self.known]


_PIXELS, _CAPTION = ("psnr_db", "ssim"), ("place_agreement", "turn_agreement", "shot_seen")
TASKS = {
    task.name: task
    for task in (
        SuiteTask(
            name="text_to_video", condition="the caption", text=True, metrics=_CAPTION, baselines=(*_ANY, SHUFFLED)
        ),
        SuiteTask(
            name="image_to_video",
            condition="the caption and the first frame",
            text=True,
            known=(0,),
            metrics=(*_PIXELS, *_CAPTION),
            baselines=_OPENED,
        ),
        SuiteTask(
            name="frame_prediction",
            condition="the first five frames",
            known=(0, 1, 2, 3, 4),
            metrics=(*_PIXELS, "turn_agreement"),
            baselines=_OPENED,
        ),
        SuiteTask(
            name="frame_interpolation",
            condition="the first and the last frame",
            known=(0, 16),
            metrics=_PIXELS,
            baselines=("crossfade", *_OPENED),
        ),
        SuiteTask(
            name="inpainting",
            condition="the clip but for its central region",
            hole="inpainting",
            metrics=("hole_psnr_db", *_PIXELS),
            baselines=(*_FILLS, *_ANY),
        ),
        SuiteTask(
            name="outpainting",
            condition="the caption and the central region of the clip",
            text=True,
            hole="outpainting",
            metrics=("hole_psnr_db", *_PIXELS),
            baselines=(*_FILLS, *_ANY),
        ),
        SuiteTask(
            name="stylization",
            condition="the caption, and flow and depth of the clip",
            text=True,
            metrics=("flow_agreement", "depth_edge_agreement", *_PIXELS, "place_agreement", "turn_agreement"),
            baselines=(*_ANY, SHUFFLED),
        ),
        SuiteTask(
            name="video_to_audio",
            condition="the clip without its sound",
            metrics=("log-mel_db", "shot_onset_f1", "shot_heard", "shots_together", "onset_agreement"),
            baselines=("silence", "another sound", SHUFFLED),
            makes=SOUND,
        ),
        SuiteTask(
            name="captioning",
            condition="the clip",
            metrics=(
                "caption_place_and_motion",
                "caption_place",
                "caption_motion",
                "caption_actions_f1",
                "caption_shot",
            ),
            baselines=("commonest caption", "nearest training caption", "another caption", SHUFFLED),
            makes=TEXT,
        ),
    )
}
