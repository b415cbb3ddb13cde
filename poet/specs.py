"""Every configuration of a run: frozen, typed, validated dataclasses that import nothing heavy.

Gin binds these classes and nothing else (`poet.config`); the resolved `Experiment` is written as JSON
into the work dir and into every checkpoint, so that later commands need only a checkpoint path.
A wrong name, type or value raises `UserError` at construction, before any device work.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

from poet.spec_base import (
    DTYPES,
    Spec,
    UserError,
    as_written,
    choose,
    from_dict,
    near_names,
    to_dict,
    type_hints,
)
from poet.spec_ingest import IngestSpec
from poet.spec_tokenizers import (
    AudioTokenizerSpec,
    AudioTrainSpec,
    DiscriminatorSpec,
    TokenizerTrainSpec,
    VideoTokenizerSpec,
)

# The whole house imports these from here.
__all__ = [
    "AudioTokenizerSpec",
    "AudioTrainSpec",
    "DiscriminatorSpec",
    "IngestSpec",
    "Spec",
    "TokenizerTrainSpec",
    "UserError",
    "VideoTokenizerSpec",
    "as_written",
    "choose",
    "from_dict",
    "near_names",
    "to_dict",
]

# ---------------------------------------------------------------------------- what the model sees


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec(Spec):
    """The media format of a run.  VideoPoet §1.5: 17 or 41 frames at 8 fps, 128x128 or 224x128."""

    frames: int = 17
    height: int = 128
    width: int = 128
    rate_hz: float = 8.0
    sample_rate_hz: int = 16_000

    def validate(self) -> None:
        self.require_positive("frames", "height", "width", "rate_hz", "sample_rate_hz")

    @property
    def portrait(self) -> bool:
        return self.height > self.width

    @property
    def samples(self) -> int:
        """Audio samples of the clip: 17 frames at 8 fps and 16 kHz are 34,000."""
        return round(self.frames / self.rate_hz * self.sample_rate_hz)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VocabularySpec(Spec):
    """Sizes of the one id space (VideoPoet §1.2): specials | visual | audio levels | text pieces.

    The text range is sized so that the default total is 300,000 ids.
    """

    specials: int = 256
    visual_bits: int = 18
    audio_levels: int = 4
    audio_codes: int = 1024
    text_pieces: int = 33_504

    def validate(self) -> None:
        self.require(self.specials >= 256, "specials", "the special tokens need 256 ids")
        self.require(1 <= self.visual_bits <= 18, "visual_bits", "must lie in 1..18")
        self.require_positive("audio_levels", "audio_codes", "text_pieces")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(Spec):
    """The frozen text encoder: VideoPoet §1.2 reserves 64 positions (T5-XL states in the paper).

    `pieces` is the SentencePiece model of text that is *written* (captions), at `length` positions
    too; empty for a run that writes none.
    `dtype` is that of the encoder's matrix products; its states are float32 whatever it is.
    """

    encoder: str = "minilm"
    length: int = 64
    width: int = 384
    path: str = ""
    pieces: str = ""
    dtype: str = "float32"

    def validate(self) -> None:
        self.require_positive("length", "width")
        self.require_one_of("dtype", DTYPES)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditioningSpec(Spec):
    """Conditions made from a clip's pixels (`poet.conditioning`; spec §1.4, §2.6).

    `outpainting` and `inpainting` list regions, one of which is drawn for each clip by its key;
    `interpolation_frames` are given at both ends; of `prediction_latents` latent frames at most the
    first ones are given.  `flow` is 'dis' (OpenCV) or the ONNX file of a network such as RAFT;
    `flow_scale` is the motion that saturates, as a share of the width.  `depth` is 'dataset' (the
    source's own), 'flat', or the ONNX file of a network such as MiDaS.
    """

    BUILT_IN: ClassVar[tuple[str, ...]] = ("dis", "dataset", "flat")

    outpainting: tuple[str, ...] = (
        "horizontal", "vertical", "central", "top_left", "dynamic_vertical"
    )
    inpainting: tuple[str, ...] = ("central", "top_left", "dynamic_central")
    interpolation_frames: int = 1
    prediction_latents: int = 3
    flow: str = "dis"
    flow_scale: float = 0.1
    depth: str = "dataset"
    seed: int = 0

    def validate(self) -> None:
        self.require_positive("interpolation_frames", "prediction_latents", "flow_scale")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in ("outpainting", "inpainting"):
            allowed = ", ".join(defaults[field])
            known = set(getattr(self, field)) <= set(defaults[field])
            named = bool(getattr(self, field))
            self.require(known and named, field, f"name regions among {allowed}")
        self.require(self.flow not in ("", "dataset", "flat"), "flow", "is 'dis' or an ONNX file")
        self.require(self.depth not in ("", "dis"), "depth", "is 'dataset', 'flat' or an ONNX file")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """The prefix LM.  The papers publish no depth or width; sizes are those of gin/models/*.gin.

    `remat` is what of a block is kept for the backward pass: 'none' recomputes nothing, 'dots' keeps the
    results of weight products, 'offload' keeps them in host memory, 'full' keeps the block's input alone.
    `attention` is the kernel of training: 'auto' takes splash on TPU, cuDNN's on GPU in 16 bits, and
    XLA's own products elsewhere (`poet/models/kernels.py`).
    `visual_head` is how a visual code is embedded and scored: 'full' has a row for each; 'factorised'
    takes its `visual_leading` most significant bits (0: half of them), then the rest given these, with
    rows that do both (`poet/models/tables.py`).
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    kv_heads: int = 4
    head_dim: int = 32
    mlp_width: int = 512
    rope_base: float = 10_000.0
    dtype: str = "bfloat16"
    param_dtype: str = "float32"
    remat: str = "full"
    attention: str = "auto"
    visual_head: str = "full"
    visual_leading: int = 0

    def validate(self) -> None:
        self.require_positive("layers", "width", "heads", "kv_heads", "head_dim", "mlp_width")
        self.require(self.heads % self.kv_heads == 0, "kv_heads", f"must divide heads={self.heads}")
        self.require(
            self.head_dim % 2 == 0 and self.head_dim >= 8,
            "head_dim",
            "must be even and at least 8 (rotary pairs over t, h and w)",
        )
        self.require_one_of("dtype", DTYPES)
        self.require_one_of("param_dtype", DTYPES)
        self.require_one_of("remat", ("none", "dots", "offload", "full"))
        self.require_one_of("attention", ("auto", "xla", "splash", "cudnn"))
        self.require_one_of("visual_head", ("full", "factorised"))
        self.require(self.visual_leading >= 0, "visual_leading", "must be a number of bits, or 0 for half")
        self.require(
            not self.visual_leading or self.visual_head == "factorised",
            "visual_leading",
            "is read with visual_head='factorised' alone",
        )


# ------------------------------------------------------------------------------- how a run is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec(Spec):
    """Mesh axes data (across slices) x fsdp x sequence x tensor; one may be -1: all remaining devices.

    `sequence` splits the positions of long layouts: activations of a clip then take a part of the memory
    on each device, and `sequence` x `tensor` must divide the key-value heads.
    """

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def validate(self) -> None:
        for field in ("data", "fsdp", "sequence", "tensor"):
            value = getattr(self, field)
            self.require(value == -1 or value > 0, field, "must be positive, or -1 for the rest")
        free = [f for f in ("data", "fsdp", "sequence", "tensor") if getattr(self, f) == -1]
        self.require(len(free) <= 1, free[-1] if free else "fsdp", "only one axis may be -1")

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """(data, fsdp, sequence, tensor) sizes for this many devices."""
        sizes = [self.data, self.fsdp, self.sequence, self.tensor]
        fixed = math.prod(s for s in sizes if s > 0)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            raise UserError(
                f"MESH data={self.data} fsdp={self.fsdp} sequence={self.sequence} tensor={self.tensor} "
                f"needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, {devices} present; "
                "set one axis to -1, or change the sizes so that their product is the device count"
            )
        return tuple(devices // fixed if s == -1 else s for s in sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer with linear warm-up and cosine decay (spec §7: the paper publishes none).

    `name`: 'adamw'; 'adafactor', whose second moments are a row and a column per matrix; 'muon', which
    orthogonalises the momentum of the blocks' matrices and leaves the rest to AdamW.
    `state_dtype` is that of the first moments; 'bfloat16' halves them.
    """

    name: str = "adamw"
    state_dtype: str = "float32"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def validate(self) -> None:
        self.require_one_of("name", ("adamw", "adafactor", "muon"))
        self.require_one_of("state_dtype", DTYPES)
        self.require_positive("learning_rate", "clip_norm")
        self.require(self.warmup_steps >= 0, "warmup_steps", "must not be negative")
        self.require(0 <= self.final_fraction <= 1, "final_fraction", "must lie in 0..1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """Length, seed and reporting of a training run, for the language model and tokenizers alike.

    `init_from` is a checkpoint, or the work dir of a run, whose parameters training starts with
    (task adaptation, spec §1.7); the optimizer starts anew.
    `microbatches` > 1 cuts every batch into that many parts whose gradients are averaged before the
    update: the memory of one part, for the same batch.
    """

    steps: int = 1000
    init_from: str = ""
    microbatches: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 4
    z_loss: float = 1e-4
    loss_vocabulary: str = "legal"
    sample_every: int = 0

    def validate(self) -> None:
        self.require_positive("steps", "microbatches", "log_every", "eval_batches")
        self.require_one_of("loss_vocabulary", ("legal", "full"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Spec):
    """A checkpoint every `every` steps and at the end; the newest `keep` stay."""

    every: int = 200
    keep: int = 2

    def validate(self) -> None:
        self.require_positive("every", "keep")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """The mixture: a token store, a rate per task, and clips per step of each group.

    A step trains one group of tasks, each as often as the sum of its tasks' rates says.
    `image_shares` are phases of a run, (until which share of its steps, share of the steps that train
    images): ((0.25, 0.9), (1.0, 0.1)) is the paper's (VideoPoet §5.1); () leaves it to the rates.

    `batch` counts sequences of the longest group; shorter groups take more (equal tokens per step)
    when `equal_tokens` is set, in multiples of `batch_multiple`, or of `batch` where that is 0: the
    devices that share a batch must divide it.  `text_dropout` hides the text of that share of samples, so that
    classifier-free guidance has an unconditional branch (spec §1.3: 10 %).
    """

    store: str = ""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    batch: int = 16
    batch_multiple: int = 0
    equal_tokens: bool = True
    image_shares: tuple[tuple[float, float], ...] = ()
    text_dropout: float = 0.1
    seed: int = 0

    def validate(self) -> None:
        self.require_positive("batch")
        self._check_image_shares()
        self.require(self.batch_multiple >= 0, "batch_multiple", "must not be negative")
        self.require(0 <= self.text_dropout < 1, "text_dropout", "must lie in [0, 1)")
        self.require(all(r >= 0 for r in self.rates.values()), "rates", "must not be negative")
        if self.rates:
            self.require(sum(self.rates.values()) > 0, "rates", "must not all be zero")

    def _check_image_shares(self) -> None:
        ends = [0.0, *(until for until, _ in self.image_shares)]
        rising = all(a < b for a, b in zip(ends, ends[1:])) and ends[-1] in (0.0, 1.0)
        self.require(
            rising, "image_shares", "needs rising shares of the steps, the last of them 1.0"
        )
        within = all(0 <= share <= 1 for _, share in self.image_shares)
        self.require(within, "image_shares", "needs shares of images between 0 and 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSpec(Spec):
    """`poet tokenize`: what is read, what is written, and how much damage is accepted.

    `source` is a TFDS folder (`.../name/1.0.0`) or name (`tfds:name/config:version`, prepared in
    `data_dir`), a folder of clips with `captions.jsonl`, or WebDataset shards (a folder or pattern of
    `*.tar`).  `workers` processes encode, each with encoders of its own.  `wait_s` is how long
    processes that share the work wait without seeing any progress of the others.
    """

    source: str = ""
    data_dir: str = ""
    path: str = ""
    splits: tuple[str, ...] = ("train", "validation")
    clips_per_shard: int = 256
    batch: int = 32
    seed: int = 0
    max_skipped: float = 0.05
    workers: int = 1
    wait_s: float = 3600.0

    def validate(self) -> None:
        self.require_positive("clips_per_shard", "batch", "workers", "wait_s")
        self.require(0 <= self.max_skipped <= 1, "max_skipped", "is a share, 0..1")


# -------------------------------------------------------------------------- what a checkpoint does


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleSpec(Spec):
    """`poet generate`.  The paper's sampling values are unpublished (spec §1.10); all are exposed.

    guidance: logits = uncond + guidance * (cond - uncond); 1.0 means no guidance, one pass.
    top_k = 0 and top_p = 1.0 mean no truncation; temperature 0 is greedy.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    seed: int = 0

    def validate(self) -> None:
        self.require(self.temperature >= 0, "temperature", "must not be negative")
        self.require(self.top_k >= 0, "top_k", "must not be negative")
        self.require(0 < self.top_p <= 1, "top_p", "must lie in (0, 1]")
        self.require(self.guidance >= 0, "guidance", "must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalSpec(Spec):
    """`poet eval`: a split of the store for likelihoods, and of the source for pixels.

    `source` empty means `STORE.source`.  `sounds` is what `poet tokenizer-eval` scores an audio
    tokenizer on beside `source`: a folder of sounds of several kinds (`data/open_sounds`).
    `temperature` is that of predicted frames, of which `samples` are drawn per clip: one is scored by
    itself, and with more of them their mean too, the prediction that a squared error asks for.
    `examples` draws one example of every task of the mixture, to be looked at.
    """

    split: str = "validation"
    source: str = ""
    sounds: str = ""
    batch: int = 16
    batches: int = 8
    clips: int = 32
    known_frames: int = 5
    temperature: float = 1.0
    samples: int = 1
    examples: bool = False

    def validate(self) -> None:
        self.require_positive("batch", "batches", "clips", "known_frames", "samples")
        self.require(self.temperature >= 0, "temperature", "must not be negative")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportSpec(Spec):
    """`poet export`: which task's signature, at which batch, for which platforms."""

    task: str = "text_to_video"
    batch: int = 1
    known_frames: int = 0
    platforms: tuple[str, ...] = ("cpu",)
    dtype: str = "float32"

    def validate(self) -> None:
        self.require_positive("batch")
        self.require_one_of("dtype", DTYPES)


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
    mesh: MeshSpec = MeshSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    data: DataSpec = DataSpec()
    store: StoreSpec = StoreSpec()
    ingest: IngestSpec = IngestSpec()
    tokenizer_train: TokenizerTrainSpec = TokenizerTrainSpec()
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
    audio_train: AudioTrainSpec = AudioTrainSpec()
    sample: SampleSpec = SampleSpec()
    eval: EvalSpec = EvalSpec()
    export: ExportSpec = ExportSpec()

    def validate(self) -> None:
        if self.video_tokenizer.bits != self.vocabulary.visual_bits:
            raise UserError(
                f"VOCABULARY.visual_bits = {self.vocabulary.visual_bits} but VIDEO_TOKENIZER.bits "
                f"= {self.video_tokenizer.bits}: the visual id range holds the tokenizer's codes, "
                "so both must be equal"
            )
        if self.model.visual_head == "factorised":
            self._check_factors()
        if self.audio_tokenizer.path:
            self._check_audio()

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
GIN_NAMES: dict[str, str] = {
    hint.__name__: hint.gin_name() for hint in type_hints(Experiment).values()
}
