"""Every configuration of a run: frozen, typed, validated dataclasses that import nothing heavy.

Gin binds these classes and nothing else (`poet.spec.config`); the resolved `Experiment` is written as JSON
into the work dir and into every checkpoint, so that later commands need only a checkpoint path.
A wrong name, type or value raises `UserError` at construction, before any device work.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

from poet.spec.base import (
    DTYPES,
    MOST_BATCH,
    MOST_FRAMES,
    MOST_SEED,
    MOST_SIDE,
    MOST_STEPS,
    Failure,
    Spec,
    UserError,
    as_written,
    choose,
    from_dict,
    from_stored,
    near_names,
    setting,
    to_dict,
    type_hints,
)
from poet.spec.faults import FaultsSpec
from poet.spec.foreign import limited, read_json, read_object
from poet.spec.ingest import IngestSpec
from poet.spec.model import ClipSpec, ConditioningSpec, ModelSpec, TextSpec, VocabularySpec
from poet.spec.run import CheckpointSpec, DataSpec, MeshSpec, OptimizerSpec, TrainSpec
from poet.spec.superres import SuperResolutionSpec
from poet.spec.tokenizers import (
    AudioTokenizerSpec,
    AudioTrainSpec,
    DiscriminatorSpec,
    TokenizerTrainSpec,
    VideoTokenizerSpec,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSpec(Spec):
    """`poet tokenize`: what is read, what is written, and how much damage is accepted.

    `source` is a TFDS folder (`.../name/1.0.0`) or name (`tfds:name/config:version`, prepared in
    `data_dir`), a folder of clips with `captions.jsonl`, or WebDataset shards (a folder or pattern of
    `*.tar`).  `splits` are read; () takes train, and validation where the source has one.  `workers`
    processes encode, each with encoders of its own.  `wait_s` is how long processes that share the
    work wait without seeing any progress of the others.
    """

    source: str = setting("", changes="nothing")
    data_dir: str = setting("", changes="nothing")
    path: str = setting("", changes="nothing")
    splits: tuple[str, ...] = setting((), changes="nothing")
    clips_per_shard: int = setting(256, changes="meaning", at_least=1, at_most=2**20)
    batch: int = setting(32, changes="nothing", at_least=1, at_most=MOST_BATCH)
    seed: int = setting(0, changes="meaning", at_least=0, at_most=MOST_SEED)
    max_skipped: float = setting(0.05, changes="nothing", at_least=0, at_most=1)
    workers: int = setting(1, changes="nothing", at_least=1, at_most=4096)
    wait_s: float = setting(3600.0, changes="nothing", above=0, at_most=1e7)


# -------------------------------------------------------------------------- what a checkpoint does


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSpec(Spec):
    """Sampling parameters.  The paper's values are unpublished (spec §1.10).

    guidance: logits = uncond + guidance * (cond - uncond); 1.0 means no guidance, one pass.
    top_k = 0, top_p = 1.0 and min_p = 0.0 mean no truncation; temperature 0 is greedy.  min_p drops ids less
    probable than that fraction of the most probable one.
    Each of these is a number, or a schedule with one number for each latent frame of the output; sound takes that of
    the latent frame at its time.
    guided_by: the conditions that the unconditional rows lack, such as ('text', 'video'); () is the text,
    if the task has one.  Each must have been dropped in training (`DATA.text_dropout`, `DATA.condition_dropout`).
    guidance_cap, guidance_parallel, guidance_momentum: adaptive projected guidance (2410.02416) of cond - uncond.
    Upper bound of its root mean square over the ids in nats; 0 is no limit.  Fraction to keep of its part along cond,
    which acts as a temperature; 1 keeps all, the paper advises 0.  Fraction of the position before to add, within a
    latent frame or a level of sound; 0 adds nothing, a negative one subtracts.
    one_pass: guidance by text through the model's own input (`MODEL.guidance_input`), which costs what none costs; of
    one scale of 1 or more, without a negative prompt or adaptive guidance.
    row_lag, frame_lag: sample pictures in fronts (DiagD, 2503.14070).  A row of a latent frame follows the row above by
    row_lag codes, a frame follows the one before by frame_lag steps; 0 is one code at a time, and frame by frame.
    Lags beyond the codes of a row, or the steps of a frame, are refused.
    Codes then see less than in training, which costs quality.
    weights: dtype of the blocks' weights in memory: '' the compute dtype, 'bfloat16', or 'int8' with a scale for each
    output channel; tests/benchmarks has its cost in nats.
    block: samples of one compiled program; smaller batches are padded, so that a sample depends on the seed, its row
    and its conditions, and not on the other samples.  Sums of another shape round differently: another `block`
    gives other samples in bfloat16.  0 means 8 for a model in bfloat16; one in float32 then takes as many as there are,
    since its rounding changes a sample only if two ids are almost equally probable.
    devices: number of devices of the process that sample in parallel, a block on each; it changes no sample.
    watermark: whether generated frames that are large enough carry one (`poet.media.watermark`).
    """

    temperature: float | tuple[float, ...] = setting(1.0, changes="nothing", at_least=0, at_most=100)
    top_k: int | tuple[int, ...] = setting(0, changes="nothing", at_least=0, at_most=2**24)
    top_p: float | tuple[float, ...] = setting(1.0, changes="nothing", above=0, at_most=1)
    min_p: float | tuple[float, ...] = setting(0.0, changes="nothing", at_least=0, at_most=1)
    guidance: float | tuple[float, ...] = setting(1.0, changes="nothing", at_least=0, at_most=100)
    guidance_cap: float = setting(0.0, changes="nothing", at_least=0, at_most=1e6)
    guidance_parallel: float = setting(1.0, changes="nothing", at_least=0, at_most=100)
    guidance_momentum: float = setting(0.0, changes="nothing", above=-1, below=1)
    guided_by: tuple[str, ...] = setting((), changes="nothing")
    one_pass: bool = setting(False, changes="nothing")
    row_lag: int = setting(0, changes="nothing", at_least=0, at_most=MOST_SIDE)
    frame_lag: int = setting(0, changes="nothing", at_least=0, at_most=MOST_SIDE**2)
    weights: str = setting("", changes="nothing", one_of=("", "bfloat16", "int8"))
    devices: int = setting(1, changes="nothing", at_least=1, at_most=4096)
    block: int = setting(0, changes="nothing", at_least=0, at_most=MOST_BATCH)
    seed: int = setting(0, changes="nothing", at_least=0, at_most=MOST_SEED)
    watermark: bool = setting(True, changes="nothing")

    SCHEDULES: ClassVar[tuple[str, ...]] = ("temperature", "top_k", "top_p", "min_p", "guidance")

    def validate(self) -> None:
        for field in self.SCHEDULES:
            self.require(bool(self.schedule(field)), field, "a schedule needs a number for each latent frame")
        self._check_one_pass()
        self.require(self.row_lag > 0 or not self.frame_lag, "frame_lag", "needs a row_lag of 1 or more")
        apart = not (self.row_lag and self.guidance_momentum)
        self.require(apart, "guidance_momentum", "runs from code to code, which row_lag samples together: 0 for one")

    def _check_one_pass(self) -> None:
        """Raises UserError for guidance that one pass cannot do."""
        if not self.one_pass:
            return
        scale, wants = self.guidance, "with one_pass is one scale of 1 or more"
        self.require(not isinstance(scale, tuple) and scale >= 1, "guidance", wants)
        self.require(self.guided_by in ((), ("text",)), "guided_by", "with one_pass is the text alone")
        for field, off in (("guidance_cap", 0), ("guidance_parallel", 1), ("guidance_momentum", 0)):
            self.require(getattr(self, field) == off, field, f"changes guidance by two passes: {off} with one_pass")

    def schedule(self, field: str) -> tuple[float, ...]:
        """The values of a field by latent frame; of one that does not change, that one."""
        value = getattr(self, field)
        return value if isinstance(value, tuple) else (value,)

    @property
    def noise(self) -> dict[str, Any]:
        """What decides samples, but the seed."""
        return {name: value for name, value in to_dict(self).items() if name not in ("seed", "watermark")}

    @property
    def unmarked(self) -> str:
        """Why files carry no watermark; '' where they may."""
        return "" if self.watermark else "SAMPLE.watermark is off"

    @property
    def guides(self) -> bool:
        """Whether any latent frame is guided."""
        return any(scale != 1 for scale in self.schedule("guidance"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptSpec(Spec):
    """Texts added to every prompt, by `poet generate` and by films (VideoPoet §4.3: the system's suffix and negative
    prompt).

    `suffix` is added behind each by a comma; `negative` is what guidance steers away from where a request names
    nothing, and needs `SAMPLE.guidance` other than 1.  `camera` has a model's own words for movements of the camera, by
    their names in `poet.sampling.films.camera`.  Shipped ones: gin/prompts/*.gin.
    """

    suffix: str = setting("", changes="nothing")
    negative: str = setting("", changes="nothing")
    camera: dict[str, str] = setting(default_factory=dict, changes="nothing")

    def complete(self, prompt: str, *phrases: str) -> str:
        """A prompt with phrases and the suffix added by commas; '' stays a request without text."""
        if not prompt.strip():
            return ""
        return ", ".join(part.strip().rstrip(".,") for part in (prompt, *phrases, self.suffix) if part.strip(" .,"))

    def negative_for(self, has_text: bool, negative: str = "") -> str:
        """The negative prompt of a request that names `negative`, or nothing; the spec's own needs a text."""
        return negative or (self.negative if has_text else "")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec(Spec):
    """`poet eval`: a split of the store for likelihoods, and of the source for pixels.

    `source` empty means `STORE.source`.  `sounds` is a folder on which `poet tokenizer-eval` scores an audio
    tokenizer beside `source`: sounds of several kinds (`data/open_sounds`).
    `conditioning_frames` is their number in evaluation, for tasks that allow several numbers; it must be one of
    them.  `temperature` is that of predicted frames, with `samples` per clip: a single one is scored, and if there
    are more also their mean, the optimal prediction for a squared error.
    `examples` samples one example of every task of the mixture.
    `gain_clips` clips, in whole batches, are scored with the conditions of other clips (`condition_gain`); 0: none.
    """

    RENAMED = {"known_frames": "conditioning_frames"}

    split: str = setting("validation", changes="nothing")
    source: str = setting("", changes="nothing")
    sounds: str = setting("", changes="nothing")
    batch: int = setting(16, changes="nothing", at_least=1, at_most=MOST_BATCH)
    batches: int = setting(8, changes="nothing", at_least=1, at_most=MOST_STEPS)
    clips: int = setting(32, changes="nothing", at_least=1, at_most=MOST_STEPS)
    conditioning_frames: int = setting(5, changes="nothing", at_least=1, at_most=MOST_FRAMES)
    temperature: float = setting(1.0, changes="nothing", at_least=0, at_most=100)
    samples: int = setting(1, changes="nothing", at_least=1, at_most=1024)
    examples: bool = setting(False, changes="nothing")
    gain_clips: int = setting(64, changes="nothing", at_least=0, at_most=MOST_STEPS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSpec(Spec):
    """`poet export`: which tasks, for which platforms.

    `tasks`: names, or 'all' for those that the checkpoint was trained on.  `dtype` is that of the model's
    arithmetic, or of the released weights; '' keeps that of the training.  `text_encoder`: whether the
    text encoder goes with it.  `films`: whether it continues films too, by a few more programs.  Every export starts
    with these defaults, not with values of the checkpoint.
    """

    RENAMED = {"task": "tasks"}
    REMOVED = ("batch", "conditioning_frames", "known_frames")

    tasks: tuple[str, ...] = setting(("all",), changes="nothing")
    platforms: tuple[str, ...] = setting(("cpu", "cuda", "tpu"), changes="nothing")
    dtype: str = setting("", changes="nothing", one_of=("", *DTYPES))
    text_encoder: bool = setting(True, changes="nothing")
    films: bool = setting(True, changes="nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Spec):
    """Everything that describes a run.  Field names are the lower-case gin names."""

    clip: ClipSpec = ClipSpec()
    vocabulary: VocabularySpec = VocabularySpec()
    video_tokenizer: VideoTokenizerSpec = VideoTokenizerSpec()
    audio_tokenizer: AudioTokenizerSpec = AudioTokenizerSpec()
    text: TextSpec = TextSpec()
    conditioning: ConditioningSpec = ConditioningSpec()
    model: ModelSpec = ModelSpec()
    super_resolution: SuperResolutionSpec = SuperResolutionSpec()
    mesh: MeshSpec = MeshSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    faults: FaultsSpec = FaultsSpec()
    data: DataSpec = DataSpec()
    store: StoreSpec = StoreSpec()
    ingest: IngestSpec = IngestSpec()
    tokenizer_train: TokenizerTrainSpec = TokenizerTrainSpec()
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
    audio_train: AudioTrainSpec = AudioTrainSpec()
    sample: SampleSpec = SampleSpec()
    prompt: PromptSpec = PromptSpec()
    eval: EvalSpec = EvalSpec()
    export: ExportSpec = ExportSpec()

    def validate(self) -> None:
        """Raises UserError where sections contradict each other."""
        if self.video_tokenizer.bits != self.vocabulary.visual_bits:
            raise UserError(
                f"VOCABULARY.visual_bits = {self.vocabulary.visual_bits} but VIDEO_TOKENIZER.bits "
                f"= {self.video_tokenizer.bits}: the visual id range holds the tokenizer's codes, "
                "so both must be equal"
            )
        if self.model.guidance_input and not self.data.text_dropout:
            raise UserError(
                "MODEL.guidance_input needs a model that also knows clips without their text: set DATA.text_dropout, "
                "such as 0.1, or MODEL.guidance_input = False"
            )
        self._check_best()
        if self.model.visual_head == "factorised":
            self._check_factors()
        if self.audio_tokenizer.path:
            self._check_audio()

    def _check_best(self) -> None:
        """What decides between checkpoints is measured at some of them."""
        every, evaluated = self.checkpoint.every, self.train.eval_every
        if not self.checkpoint.best.startswith("validation/"):
            return
        if not evaluated or math.lcm(every, evaluated) > self.train.steps:
            raise UserError(
                f"CHECKPOINT.best = {self.checkpoint.best!r} is never measured at a checkpoint: "
                f"TRAIN.eval_every = {evaluated} and CHECKPOINT.every = {every} meet at no step up to TRAIN.steps = "
                f"{self.train.steps}; set TRAIN.eval_every to a multiple of CHECKPOINT.every"
            )

    def _check_factors(self) -> None:
        """Both factors of a visual code have bits, and nothing asks for a row of a whole code."""
        bits, leading = self.vocabulary.visual_bits, self.model.visual_leading
        if bits < 2 or leading >= bits:
            raise UserError(
                f"MODEL.visual_leading = {leading} of VOCABULARY.visual_bits = {bits} leaves no two "
                f"factors: expected 1..{max(bits - 1, 1)} (0: half), or MODEL.visual_head = 'full'"
            )
        if self.train.loss_vocabulary == "full":
            raise UserError(
                "TRAIN.loss_vocabulary = 'full' needs a row for every id, which MODEL.visual_head = "
                "'factorised' has not; use 'legal', or MODEL.visual_head = 'full'"
            )

    def _check_audio(self) -> None:
        """The vocabulary holds the codes of the tokenizer's first levels; clips have its rate."""
        audio, vocabulary = self.audio_tokenizer, self.vocabulary
        if vocabulary.audio_levels > audio.levels:
            raise UserError(
                f"VOCABULARY.audio_levels = {vocabulary.audio_levels} but AUDIO_TOKENIZER.levels = "
                f"{audio.levels}: the model takes the tokenizer's first levels, so at most as many"
            )
        for name, ours, theirs in (
            ("VOCABULARY.audio_codes", vocabulary.audio_codes, "codes"),
            ("CLIP.sample_rate_hz", self.clip.sample_rate_hz, "sample_rate_hz"),
        ):
            if ours != getattr(audio, theirs):
                raise UserError(
                    f"{name} = {ours} but AUDIO_TOKENIZER.{theirs} = {getattr(audio, theirs)}: "
                    "both must be equal in a run with sound (AUDIO_TOKENIZER.path is set)"
                )


# Class name -> gin name: MODEL.layers = 24, --gin.TRAIN.steps=100.
GIN_NAMES: dict[str, str] = {hint.__name__: hint.gin_name() for hint in type_hints(Experiment).values()}
