"""The protocols: what is sampled, from what, how many, how it is cut, and which networks judge it.

Facts carry a tag: [P] read in the paper (VideoPoet, 2312.14125, section on evaluation), [2] read in other texts about
it, [R] in the repository of a benchmark, [D] derived, [X] a choice of ours where nothing is published.  Sampling
settings (temperature, guidance) of VideoPoet are not published [P]: those of the checkpoint and of the command line are
used, and recorded.
"""

from __future__ import annotations

import dataclasses

FIRST, CENTRE = "first", "centre"
# What is computed of a network's vectors.
FRECHET, CLASS_SCORE, COSINE = "frechet", "class_score", "cosine"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """Frames of a clip: how many, their sides in pixels, and their rate in Hz (0: that of the files)."""

    frames: int
    height: int
    width: int
    rate_hz: float = 0.0

    def __str__(self) -> str:
        rate = f" at {self.rate_hz:g} Hz" if self.rate_hz else ""
        return f"{self.frames} frames of {self.height}x{self.width}{rate}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measure:
    """A number of a protocol.

    Attributes:
      published: its name in papers; only a run without deviations may be compared with numbers of that name.
      kind: `FRECHET`, `CLASS_SCORE` or `COSINE`.
      medium: what its network reads.
      network: the network that a user must bring, in words.
    """

    published: str
    kind: str
    medium: str
    network: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A published result, and where it was read."""

    system: str
    measure: str
    value: float
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A protocol.

    Attributes:
      task: of `poet generate`.
      prompts, clips, real: what DATA must hold, in words; '' for none.
      cases: lines of the list of cases; 0 where the source decides.
      samples: in all; cases are taken in turn until there are so many.  0: one for each case.
      sets: the samples are scored in so many sets of equal size, and values are averaged.
      reals: clips that samples are compared with.
      sampled: the form that the model samples.
      scored: the form of both sides when they are compared; bicubic, about the centre.
      cut: which frames of a real clip are taken, `FIRST` or `CENTRE`, at the file's own rate.
      conditioning_frames: of each case's clip; they are cut from it like real clips.
      region: of inpainting and outpainting.
      tool: the program that scores the samples where poet does not.
    """

    name: str
    title: str
    task: str
    prompts: str = ""
    clips: str = ""
    real: str = ""
    cases: int = 0
    samples: int = 0
    sets: int = 1
    reals: int = 0
    sampled: Form
    scored: Form
    cut: str = CENTRE
    conditioning_frames: int = 0
    region: str = ""
    measures: tuple[Measure, ...] = ()
    published: tuple[Published, ...] = ()
    facts: str
    tool: str = ""
    takes_depth: bool = False

    @property
    def count(self) -> int:
        """Samples in all."""
        return self.samples or self.cases


_SQUARE = Form(frames=17, height=128, width=128, rate_hz=8.0)
_LARGE = Form(frames=16, height=256, width=256)
_SMALL = Form(frames=16, height=128, width=128)
_FVD = Measure(
    published="FVD", kind=FRECHET, medium="video", network="I3D trained on Kinetics-400, as ONNX (video, 16 frames)"
)
_CLIPSIM = Measure(
    published="CLIPSIM",
    kind=COSINE,
    medium="frames",
    network="the image tower of CLIP ViT-B/16 with its projection, as ONNX (frames, 224x224)",
)
_TABLE_2, _TABLE_1 = "VideoPoet, table 2 (zero-shot)", "VideoPoet, table 1 (8B, all tasks)"

PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            name="msrvtt_fvd",
            title="MSR-VTT, zero-shot text to video, FVD",
            task="text_to_video",
            prompts="the first 40,960 captions of the test split of MSR-VTT, in its order",
            real="2,048 clips of the test split, at their native 30 Hz",
            cases=40_960,
            sets=20,
            reals=2_048,
            sampled=_SQUARE,
            scored=_LARGE,
            measures=(_FVD,),
            published=(
                Published(system="VideoPoet 8B, pretrained", measure="FVD", value=213, source=_TABLE_2),
                Published(system="Show-1", measure="FVD", value=538, source=_TABLE_2),
            ),
            facts="2,048 samples x 20 repeats; real: central 16 frames at 30 Hz; 16 frames of 256x256, sampled at "
            "128x128 and resized bicubically, the 17th frame left out [P]",
        ),
        Preset(
            name="msrvtt_clipsim",
            title="MSR-VTT, zero-shot text to video, CLIPSIM",
            task="text_to_video",
            prompts="all 59,794 captions of the test split of MSR-VTT",
            cases=59_794,
            sampled=_SQUARE,
            scored=_LARGE,
            measures=(_CLIPSIM,),
            published=(
                Published(system="VideoPoet 8B, pretrained", measure="CLIPSIM", value=0.3049, source=_TABLE_2),
                Published(system="VideoPoet 8B, adapted", measure="CLIPSIM", value=0.3123, source=_TABLE_2),
                Published(system="Show-1", measure="CLIPSIM", value=0.3072, source=_TABLE_2),
            ),
            facts="CLIP ViT-B/16, all captions, 16 frames [P]; the mean over frames of the cosine [D]",
        ),
        Preset(
            name="ucf101_fvd_is",
            title="UCF-101, zero-shot text to video, FVD and IS",
            task="text_to_video",
            prompts="a sentence for each of the 101 classes (those of PYoCo in the paper)",
            real="10,000 clips of the training split, at their native 25 Hz",
            cases=101,
            samples=10_000,
            reals=10_000,
            sampled=_SQUARE,
            scored=_LARGE,
            measures=(
                _FVD,
                Measure(
                    published="IS",
                    kind=CLASS_SCORE,
                    medium="video",
                    network="C3D trained on UCF-101, its logits, as ONNX (video, 16 frames)",
                ),
            ),
            published=(
                Published(system="VideoPoet 8B, pretrained", measure="FVD", value=355, source=_TABLE_2),
                Published(system="VideoPoet 8B, pretrained", measure="IS", value=38.44, source=_TABLE_2),
                Published(system="Show-1", measure="FVD", value=394, source=_TABLE_2),
                Published(system="Show-1", measure="IS", value=35.42, source=_TABLE_2),
            ),
            facts="10,000 samples of class sentences; real: central 16 frames at 25 Hz; 256x256, bicubic [P]; samples "
            "are spread evenly over the classes [X]",
        ),
        Preset(
            name="k600_frame_prediction",
            title="Kinetics-600, frame prediction, FVD",
            task="frame_prediction",
            clips="50,000 clips of Kinetics-600, whose first 5 of the central 16 frames condition a sample",
            real="the same clips",
            cases=50_000,
            samples=200_000,
            reals=50_000,
            sampled=_SQUARE,
            scored=_SMALL,
            conditioning_frames=5,
            measures=(_FVD,),
            published=(Published(system="VideoPoet 8B", measure="FVD", value=687, source=_TABLE_1),),
            facts="5 frames condition, 11 are predicted, 50,000 x 4 samples, 128x128 [P]; all samples are one set [X]",
        ),
        *(
            Preset(
                name=f"ssv2_{task}",
                title=f"Something-Something v2, {task}, FVD",
                task=task,
                # The task takes a text; whether the paper gave one is not known.
                prompts="the label of each clip [X]" if task == "outpainting" else "",
                clips="50,000 clips of Something-Something v2",
                real="the same clips",
                cases=50_000,
                reals=50_000,
                sampled=_SQUARE,
                scored=_SMALL,
                region="central",
                measures=(_FVD,),
                published=(Published(system="VideoPoet 8B", measure="FVD", value=value, source=_TABLE_1),),
                facts="central region as in MAGVIT, 50,000 samples, 128x128, FVD alone [P]",
            )
            for task, value in (("inpainting", 4.7), ("outpainting", 13.76))
        ),
        Preset(
            name="davis_stylization",
            title="DAVIS 2016, stylization, CLIPSIM",
            task="stylization",
            prompts="two prompts for each of 20 clips: elephant, car-turn, dog-agility, bmx-bumps, train, bus, lucia, "
            "tennis, bear, flamingo, hike, goat, parkour, cows, camel, blackswan, dog, kite-surf, libby, "
            "horsejump-high",
            clips="each clip from its start frame on, and its depth unless a network of depth is set",
            cases=40,
            sampled=_SQUARE,
            scored=_LARGE,
            cut=FIRST,
            measures=(_CLIPSIM,),
            published=(
                Published(system="VideoPoet", measure="CLIPSIM", value=0.3417, source="VideoPoet, table 3 [2]"),
                Published(system="Control-A-Video", measure="CLIPSIM", value=0.3246, source="VideoPoet, table 3 [2]"),
            ),
            facts="16 frames from a start frame, central square crop, 256x256, CLIP-B/16 of each frame [P]",
            takes_depth=True,
        ),
        Preset(
            name="audio_fad",
            title="Sound of videos, FAD",
            task="video_to_audio",
            clips="videos with sound, as many as you have: the paper's set is not named",
            real="the same videos",
            cases=25_000,
            reals=25_000,
            sampled=_SQUARE,
            scored=_SMALL,
            cut=FIRST,
            measures=(
                Measure(published="FAD", kind=FRECHET, medium="sound", network="VGGish, as ONNX (sound at 16 kHz)"),
            ),
            facts="FAD with VGGish on 25,000 held-out videos, published as a figure alone [P]; the task is ours [X]",
        ),
        Preset(
            name="vbench_prompts",
            title="VBench, its prompts and file names",
            task="text_to_video",
            prompts="those of the installed package vbench; no DATA",
            cases=4_720,
            sampled=_SQUARE,
            scored=_SQUARE,
            cut=FIRST,
            facts="VBench_full_info.json of vbench 0.1.5 [R]: 944 different prompts in 16 dimensions; five samples of "
            "each, PROMPT-0.mp4 to PROMPT-4.mp4 [R]",
            tool="vbench: `vbench evaluate --videos_path OUT/clips --dimension NAME`",
        ),
        Preset(
            name="physics_iq",
            title="Physics-IQ, five seconds after three",
            task="frame_prediction",
            clips="the 198 conditioning videos of 3 s, called as the benchmark calls its cases",
            cases=198,
            sampled=Form(frames=64, height=128, width=128, rate_hz=8.0),
            scored=Form(frames=40, height=128, width=128, rate_hz=8.0),
            conditioning_frames=24,
            published=(
                Published(system="VideoPoet, multiframe", measure="Physics-IQ", value=29.5, source="its README [R]"),
                Published(system="VideoPoet, from an image", measure="Physics-IQ", value=20.3, source="its README [R]"),
            ),
            facts="198 cases, 3 s condition, exactly 5 s are scored, at 8, 16, 24 or 30 Hz [R]",
            tool="physics-IQ-benchmark (google-deepmind), on OUT/clips",
        ),
    )
}
