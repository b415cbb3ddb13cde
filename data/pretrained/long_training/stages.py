"""The stages of what ships trained, and the recipes: which configurations and sizes each machine takes."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Mapping

from long_training.runner import Job, Stage

# Names of the released folders, below data/pretrained.
TOKENIZER, SOUND, PIECES, LM = "magvit_v2_64x8", "soundstream_16k", "pieces_512", "lm_arenas"
SUPERRES = "superres_arenas"
SOUND_PARTS = ("tokenizer_sound", "tokenizer_sound_gan", "tokenizer_sound_fine", "tokenizer_sound_gan")
_POET = (sys.executable, "-m", "poet.cli")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a machine can train.

    Attributes:
      lm, adapt: gin files of the language model and of its adaptation.
      bindings: stage -> settings beside its gin file, `NAME.field=value`.
      arenas: flags of data/arenas_av/build.py.
    """

    lm: str = "arenas"
    adapt: str = "arenas_adapt"
    bindings: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    arenas: tuple[str, ...] = ()


# A GPU sees whole clips, many at a time, for five times as long.
_GPU_TOKENIZER = ("TOKENIZER_TRAIN.batch=64", "TOKENIZER_TRAIN.frames=17", "CHECKPOINT.every=1000")
# Every stage in seconds: the whole chain is run, nothing is learnt.
_SMALL_TOKENIZER = (
    "VIDEO_TOKENIZER.base_channels=16",
    "TOKENIZER_TRAIN.batch=2",
    "TRAIN.log_every=1",
    "CHECKPOINT.every=2",
)
_SMALL_LM = (
    "MODEL.layers=1",
    "MODEL.width=32",
    "MODEL.heads=1",
    "MODEL.kv_heads=1",
    "MODEL.mlp_width=32",
    "DATA.batch=1",
    "TRAIN.log_every=2",
    "TRAIN.eval_every=0",
    "CHECKPOINT.every=4",
    "VIDEO_TOKENIZER.base_channels=16",
    "DATA.mixture_rates={'text_to_video': 0.3, 'inpainting': 0.4, 'text_to_video_with_audio': 0.3}",
)
RECIPES = {
    "cpu": Recipe(),
    "gpu": Recipe(
        lm="arenas_gpu",
        adapt="arenas_adapt_gpu",
        bindings={
            "tokenizer": (*_GPU_TOKENIZER, "TRAIN.steps=40000"),
            "round": (*_GPU_TOKENIZER, "TRAIN.steps=10000"),
            "decoder": (*_GPU_TOKENIZER, "TRAIN.steps=20000"),
        },
        arenas=("--train_clips_per_arena=3000", "--validation_clips_per_arena=48", "--test_clips_per_arena=48"),
    ),
    "smoke": Recipe(
        bindings={
            "tokenizer": (*_SMALL_TOKENIZER, "TRAIN.steps=4"),
            "round": (*_SMALL_TOKENIZER, "TRAIN.steps=2"),
            "decoder": (*_SMALL_TOKENIZER, "TRAIN.steps=2", "VIDEO_TOKENIZER.decoder_channels=16"),
            "codes": ("VIDEO_TOKENIZER.base_channels=16", "STORE.batch=4"),
            "lm": (*_SMALL_LM, "TRAIN.steps=12"),
            "adapt": (*_SMALL_LM, "TRAIN.steps=8"),
            "superres": (
                "MODEL.layers=3",
                "MODEL.width=32",
                "MODEL.heads=1",
                "MODEL.kv_heads=1",
                "MODEL.mlp_width=32",
                "DATA.batch=1",
                "TRAIN.steps=4",
                "TRAIN.log_every=2",
                "TRAIN.eval_every=0",
                "CHECKPOINT.every=4",
                "VIDEO_TOKENIZER.base_channels=16",
            ),
            "release": ("EVAL.batch=2", "EVAL.batches=1", "EVAL.clips=2", "EVAL.samples=1", "EVAL.gain_clips=2"),
        },
        arenas=("--arena=basic", "--clips_per_arena=8", "--workers=2"),
    ),
}


def stages(recipe: Recipe, work: pathlib.Path, code: pathlib.Path) -> dict[str, Stage]:
    """Every stage by name, in order.

    Args:
      work: where all of them write.
      code: the checkout that they run.
    """
    made = _Maker(recipe, work, code)
    found = (
        Stage(name="arenas", note="render game clips with sound, depth and captions", jobs=(made.arenas(),)),
        Stage(name="tokenizer", note="train the video tokenizer from scratch", jobs=(made.tokenizer(),)),
        Stage(name="round", note="fine-tune it so that codes survive decoding and encoding", jobs=(made.round(),)),
        Stage(name="decoder", note="train a finer decoder for its codes", jobs=(made.decoder(),)),
        Stage(name="sound", note="train the audio tokenizer in four parts", jobs=made.sound(), on_request=True),
        Stage(name="codes", note="clips, sound, made conditions and captions to codes", jobs=(made.codes(),)),
        Stage(name="lm", note="train the language model on every task", jobs=(made.lm(),)),
        Stage(name="adapt", note="adapt it to the tasks that are asked for", jobs=(made.adapt(),)),
        Stage(
            name="superres",
            note="super-resolution: clips of 128 pixels, their codes, the network",
            jobs=made.superres(),
            on_request=True,
        ),
        Stage(name="release", note="weights, scores and logs as they ship", jobs=made.release()),
    )
    return {stage.name: stage for stage in found}


@dataclasses.dataclass(frozen=True)
class _Maker:
    """Jobs of one recipe in one work dir."""

    recipe: Recipe
    work: pathlib.Path
    code: pathlib.Path

    @property
    def clips(self) -> pathlib.Path:
        return self.work / "data" / "arenas_av" / "1.0.0"

    @property
    def released(self) -> pathlib.Path:
        """The folder under which released weights lie as they do in a checkout."""
        return self.work / "release"

    def _train(self, command: str, stage: str, gin: str, folder: str, *bindings: str) -> Job:
        workdir = self.work / folder
        settings = (*bindings, *self.recipe.bindings.get(stage, ()))
        flags = (f"--gin_file=gin/experiments/{gin}.gin", f"--workdir={workdir}", *map("--gin.{}".format, settings))
        return Job(command=(*_POET, command, *flags), workdir=workdir)

    def arenas(self) -> Job:
        flags = (f"--data_dir={self.work / 'data'}", *self.recipe.arenas)
        return Job(command=(sys.executable, "data/arenas_av/build.py", *flags))

    def tokenizer(self) -> Job:
        source = f"TOKENIZER_TRAIN.source={self.clips}"
        return self._train("tokenizer-train", "tokenizer", "tokenizer_arenas", "tokenizer", source)

    def round(self) -> Job:
        start = f"TOKENIZER_TRAIN.init_from={self.work / 'tokenizer' / 'tokenizer'}"
        source = f"TOKENIZER_TRAIN.source={self.clips}"
        return self._train("tokenizer-train", "round", "tokenizer_arenas_round", "round", source, start)

    def decoder(self) -> Job:
        """Codes stay what they were: what follows may run beside it."""
        start = f"TOKENIZER_TRAIN.init_from={self.work / 'round' / 'tokenizer'}"
        source = f"TOKENIZER_TRAIN.source={self.clips}"
        return self._train("tokenizer-train", "decoder", "tokenizer_arenas_decoder", "decoder", source, start)

    def sound(self) -> tuple[Job, ...]:
        jobs = [Job(command=(sys.executable, "data/open_sounds/build.py", f"--data_dir={self.work / 'data'}"))]
        sources = {str(self.work / "data" / "open_sounds" / "1.0.0"): 4, str(self.clips): 1}
        for part, gin in enumerate(SOUND_PARTS):
            before = f"TOKENIZER_TRAIN.init_from={self.work / f'sound_{part - 1}' / 'tokenizer'}"
            bindings = (f"TOKENIZER_TRAIN.sources={sources}", f"TRAIN.seed={part}", *((before,) if part else ()))
            jobs.append(self._train("tokenizer-train", "sound", gin, f"sound_{part}", *bindings))
        return tuple(jobs)

    def _networks(self) -> tuple[str, ...]:
        """The tokenizers that codes are made with: the sound of the shipped one unless that stage was run."""
        trained = self.work / f"sound_{len(SOUND_PARTS) - 1}" / "tokenizer"
        sound = (f"AUDIO_TOKENIZER.path={trained}",) if (self.work / "stages" / "sound.json").exists() else ()
        return (f"VIDEO_TOKENIZER.path={self.work / 'round' / 'tokenizer'}", *sound)

    def codes(self) -> Job:
        settings = (
            f"STORE.source={self.clips}",
            f"STORE.path={self.work / 'codes'}",
            *self._networks(),
            *self.recipe.bindings.get("codes", ()),
        )
        flags = (f"--gin_file=gin/experiments/{self.recipe.lm}.gin", *map("--gin.{}".format, settings))
        return Job(command=(*_POET, "tokenize", *flags))

    def _store(self) -> tuple[str, ...]:
        return (f"DATA.store={self.work / 'codes'}", f"EVAL.source={self.clips}", *self._networks())

    def lm(self) -> Job:
        return self._train("train", "lm", self.recipe.lm, "lm", *self._store())

    def adapt(self) -> Job:
        start = f"TRAIN.init_from={self.work / 'lm'}"
        return self._train("train", "adapt", self.recipe.adapt, "adapt", *self._store(), start)

    def superres(self) -> tuple[Job, ...]:
        """The network sees clips of twice the size through the same tokenizer."""
        large, codes = self.work / "data_128", self.work / "codes_128"
        render = (sys.executable, "data/arenas_av/build.py", f"--data_dir={large}", "--size=128", *self.recipe.arenas)
        tokenizer = f"VIDEO_TOKENIZER.path={self.work / 'round' / 'tokenizer'}"
        stored = (
            f"STORE.source={large / 'arenas_av' / '1.0.0'}",
            f"STORE.path={codes}",
            tokenizer,
            *self.recipe.bindings.get("codes", ()),
        )
        gin = "--gin_file=gin/experiments/superres_arenas.gin"
        tokenize = (*_POET, "tokenize", gin, *map("--gin.{}".format, stored))
        train = self._train("train", "superres", "superres_arenas", "superres", f"DATA.store={codes}", tokenizer)
        return Job(command=render), Job(command=tokenize), train

    def release(self) -> tuple[Job, ...]:
        helper = (
            sys.executable,
            str(self.code / "data/pretrained/long_training/release.py"),
            f"--work={self.work}",
            f"--shipped={self.code / 'data/pretrained'}",
        )
        weights = f"data/pretrained/{LM}"
        paths = (
            f"VIDEO_TOKENIZER.path=data/pretrained/{TOKENIZER}",
            f"AUDIO_TOKENIZER.path=data/pretrained/{SOUND}",
            f"TEXT.pieces=data/pretrained/{PIECES}",
            # Folders of the machine that trained them.
            "DATA.store=",
            "TRAIN.init_from=",
        )
        scored = (
            f"DATA.store={self.work / 'codes'}",
            f"EVAL.source={self.clips}",
            *self.recipe.bindings.get("release", ()),
        )
        return (
            Job(command=(*helper, "place")),
            *self._released_superres(),
            self._here(
                "export",
                f"--checkpoint={self.work / 'adapt'}",
                f"--out={weights}",
                "--weights_only",
                "--overwrite",
                "--gin.EXPORT.dtype=bfloat16",
                *map("--gin.{}".format, paths),
            ),
            self._here(
                "eval",
                f"--checkpoint={weights}",
                f"--out={self.work / 'scores' / LM}",
                "--overwrite",
                f"--scores={self.work / 'scores.json'}",
                *map("--gin.{}".format, scored),
            ),
            self._here(
                "tokenizer-eval",
                f"--gin_file=gin/models/{TOKENIZER}.gin",
                f"--tokenizer=data/pretrained/{TOKENIZER}",
                "--set=source",
                "--overwrite",
                f"--out={self.work / 'scores' / TOKENIZER}",
                f"--gin.EVAL.source={self.clips}",
                *(f"--gin.{s}" for s in scored if s.startswith("EVAL.clips")),
            ),
            Job(command=(*helper, "finish")),
        )

    def _released_superres(self) -> tuple[Job, ...]:
        """Super-resolution, if that stage was run."""
        if not (self.work / "stages" / "superres.json").exists():
            return ()
        paths = (f"VIDEO_TOKENIZER.path=data/pretrained/{TOKENIZER}", "DATA.store=", "EXPORT.dtype=bfloat16")
        out, source = f"data/pretrained/{SUPERRES}", self.work / "superres"
        flags = (f"--checkpoint={source}", f"--out={out}", "--weights_only", "--overwrite")
        return (self._here("export", *flags, *map("--gin.{}".format, paths)),)

    def _here(self, *command: str) -> Job:
        return Job(command=(*_POET, *command), cwd=self.released)
