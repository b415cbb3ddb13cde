"""Every configuration of a run: frozen, typed, validated dataclasses that import nothing heavy.

Gin binds these classes and nothing else (`poet.config`); the resolved `Experiment` is written as JSON
into the work dir and into every checkpoint, so that later commands need only a checkpoint path.
A wrong name, type or value raises `UserError` at construction, before any device work.
"""

from __future__ import annotations

import dataclasses
import math

from poet.spec_base import Spec, UserError, choose, from_dict, near_names, to_dict, type_hints

# The whole house imports these from here.
__all__ = ["Spec", "UserError", "choose", "from_dict", "near_names", "to_dict"]

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
class VideoTokenizerSpec(Spec):
    """MAGVIT-v2 network (spec §2.2-2.4; defaults are the paper's full-size figure).

    `stem` is a causal space-to-depth (t, h, w) in front of the first convolution, (1, 1, 1) in the
    paper; each level but the last halves h and w, and t where `temporal_downsample` says so.
    `stem_kernel` is that of the first and the last convolution: 1 beside a large stem is a patch
    embedding, and saves most of the FLOPs of a small network.
    `temporal_kernel` 3 leaves every convolution cubic; less is the most frames that any of them
    spans: 1 is the image network of the two-step training (spec §2.5).
    `path` holds frozen weights (`model.safetensors` + `spec.json`), empty while training.
    """

    base_channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 4
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    stem: tuple[int, int, int] = (1, 1, 1)
    stem_kernel: int = 3
    down_kernel: int = 3
    temporal_kernel: int = 3
    norm_groups: int = 32
    bits: int = 18
    dtype: str = "float32"
    path: str = ""

    def validate(self) -> None:
        self.require_positive(
            "base_channels", "blocks", "stem_kernel", "down_kernel", "norm_groups"
        )
        self.require(1 <= self.temporal_kernel <= 3, "temporal_kernel", "must lie in 1..3")
        self.require(
            self.temporal_kernel > 1 or not any(self.temporal_downsample),
            "temporal_kernel",
            "a convolution that halves time spans at least 2 frames: take 2 or 3, or clear every "
            "flag of temporal_downsample",
        )
        self.require(1 <= self.bits <= 18, "bits", "must lie in 1..18")
        self.require_one_of("dtype", DTYPES)
        self.require(
            len(self.temporal_downsample) == len(self.multipliers) - 1,
            "temporal_downsample",
            "needs one flag per level but the last",
        )
        for channels in (self.base_channels * m for m in self.multipliers):
            self.require(
                channels % self.norm_groups == 0, "norm_groups", f"must divide {channels} channels"
            )

    @property
    def factor(self) -> tuple[int, int, int]:
        """Pixels per latent in (t, h, w): (4, 8, 8) in the paper."""
        spatial = 2 ** len(self.temporal_downsample)
        temporal = 2 ** sum(self.temporal_downsample)
        return self.stem[0] * temporal, self.stem[1] * spatial, self.stem[2] * spatial

    def grid(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent (t, h, w) of a clip; frames must be 1 + k*factor, sides multiples of the factor."""
        t, h, w = self.factor
        if frames < 1 or (frames - 1) % t:
            low = 1 + max(frames - 1, 0) // t * t
            raise UserError(
                f"a clip of {frames} frames cannot be tokenized: frames must be 1 + {t}k; "
                f"nearest are {low} and {low + t}"
            )
        for side, name, f in ((height, "height", h), (width, "width", w)):
            if side < f or side % f:
                low = max(side // f, 1) * f
                raise UserError(
                    f"a clip of {name} {side} cannot be tokenized: {name} must be a multiple of "
                    f"{f}; nearest are {low} and {low + f}"
                )
        return 1 + (frames - 1) // t, height // h, width // w


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSpec(Spec):
    """The frozen text encoder: VideoPoet §1.2 reserves 64 positions (T5-XL states in the paper)."""

    encoder: str = "minilm"
    length: int = 64
    width: int = 384
    path: str = ""

    def validate(self) -> None:
        self.require_positive("length", "width")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec(Spec):
    """The prefix LM.  The papers publish no depth or width; sizes are those of gin/models/*.gin."""

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
        self.require_one_of("remat", ("none", "dots", "full"))


# ------------------------------------------------------------------------------- how a run is done


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec(Spec):
    """Mesh axes data (across slices) x fsdp x tensor; one of them may be -1: all remaining devices."""

    data: int = 1
    fsdp: int = -1
    tensor: int = 1

    def validate(self) -> None:
        for field in ("data", "fsdp", "tensor"):
            value = getattr(self, field)
            self.require(value == -1 or value > 0, field, "must be positive, or -1 for the rest")
        free = [f for f in ("data", "fsdp", "tensor") if getattr(self, f) == -1]
        self.require(len(free) <= 1, free[-1] if free else "fsdp", "only one axis may be -1")

    def shape(self, devices: int) -> tuple[int, int, int]:
        """(data, fsdp, tensor) sizes for this many devices."""
        sizes = [self.data, self.fsdp, self.tensor]
        fixed = math.prod(s for s in sizes if s > 0)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            raise UserError(
                f"MESH data={self.data} fsdp={self.fsdp} tensor={self.tensor} needs "
                f"{'a multiple of ' if -1 in sizes else ''}{fixed} devices, {devices} present; "
                "set one axis to -1, or change the sizes so that their product is the device count"
            )
        return tuple(devices // fixed if s == -1 else s for s in sizes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """AdamW with linear warm-up and cosine decay (spec §7: the paper publishes none)."""

    learning_rate: float = 1e-3
    warmup_steps: int = 100
    final_fraction: float = 0.1
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def validate(self) -> None:
        self.require_positive("learning_rate", "clip_norm")
        self.require(self.warmup_steps >= 0, "warmup_steps", "must not be negative")
        self.require(0 <= self.final_fraction <= 1, "final_fraction", "must lie in 0..1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """Length, seed and reporting of a training run, for the language model and tokenizers alike.

    `microbatches` > 1 cuts every batch into that many parts whose gradients are averaged before the
    update: the memory of one part, for the same batch.
    """

    steps: int = 1000
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

    `batch` counts sequences of the longest group; shorter groups take more (equal tokens per step)
    when `equal_tokens` is set.  `text_dropout` hides the text of that share of samples, so that
    classifier-free guidance has an unconditional branch (spec §1.3: 10 %).
    """

    store: str = ""
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    batch: int = 16
    equal_tokens: bool = True
    text_dropout: float = 0.1
    seed: int = 0

    def validate(self) -> None:
        self.require_positive("batch")
        self.require(0 <= self.text_dropout < 1, "text_dropout", "must lie in [0, 1)")
        self.require(all(r >= 0 for r in self.rates.values()), "rates", "must not be negative")
        if self.rates:
            self.require(sum(self.rates.values()) > 0, "rates", "must not all be zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreSpec(Spec):
    """`poet tokenize`: what is read, what is written, and how much damage is accepted.

    `source` is a TFDS folder (`.../name/1.0.0`) or a folder of clips with `captions.jsonl`.
    """

    source: str = ""
    path: str = ""
    splits: tuple[str, ...] = ("train", "validation")
    clips_per_shard: int = 256
    batch: int = 32
    seed: int = 0
    max_skipped: float = 0.05

    def validate(self) -> None:
        self.require_positive("clips_per_shard", "batch")
        self.require(0 <= self.max_skipped <= 1, "max_skipped", "is a share, 0..1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTrainSpec(Spec):
    """`poet tokenizer-train`: batches and the weights of every loss term (spec §2.1, §2.5).

    Clips: of `source`, one folder, or of `sources`, folder -> weight: of sum(weights) examples each
    folder gives exactly its weight.  A folder is a TFDS folder (`.../name/1.0.0`) or one of clips.

    Batches: `frames` = 0 trains on the run's `CLIP.frames`; `image_share` is the share of steps on
    one-frame clips; `crops` lists (height, width) of random crops of `CLIP`'s frames, each drawn
    equally often at an equal number of pixels per step, () takes whole frames.

    Start: `init_from` names a trained tokenizer whose weights are taken over; those of an image
    tokenizer (kernels of one frame) are inflated into the last temporal tap (spec §2.5).

    Quantizer: `entropy_groups` = 0 takes the batch entropy exactly over all codes; `entropy_samples`
    = 0 takes it over all tokens of a step, else over about that many of them.

    Perceptual: `perceptual` names a network of `poet.tokenizers.perceptual`, '' leaves the term out;
    `perceptual_path` holds weights that the user brings; `perceptual_frames` = 0 compares every
    frame, else that many random ones of each clip.

    Adversarial: `adversarial_weight` = 0 trains without a discriminator (`DISCRIMINATOR`); before
    step `gan_start` the discriminator rests; `r1_every` > 1 applies R1 at every so many steps, that
    many times as strong.
    """

    source: str = ""
    sources: dict[str, int] = dataclasses.field(default_factory=dict)
    split: str = "train"
    batch: int = 16
    frames: int = 0
    image_share: float = 0.0
    crops: tuple[tuple[int, int], ...] = ()
    init_from: str = ""
    l2_weight: float = 5.0
    commitment_weight: float = 0.25
    entropy_weight: float = 0.1
    entropy_anneal: float = 3.0
    entropy_anneal_steps: int = 2000
    entropy_groups: int = 0
    entropy_samples: int = 0
    temperature: float = 0.01
    perceptual: str = ""
    perceptual_path: str = ""
    perceptual_weight: float = 0.1
    perceptual_frames: int = 0
    adversarial_weight: float = 0.0
    gan_start: int = 0
    r1_weight: float = 10.0
    r1_every: int = 1
    lecam_weight: float = 0.001
    lecam_decay: float = 0.999
    ema_decay: float = 0.999

    def validate(self) -> None:
        self.require_positive("batch", "temperature", "r1_every")
        self.require(not (self.source and self.sources), "sources", "give it or source, not both")
        self.require(all(w > 0 for w in self.sources.values()), "sources", "weights start at 1")
        self.require(0 <= self.image_share <= 1, "image_share", "is a share, 0..1")
        for field in ("ema_decay", "lecam_decay"):
            self.require(0 <= getattr(self, field) < 1, field, "must lie in [0, 1)")
        for field in ("entropy_samples", "perceptual_frames", "adversarial_weight", "gan_start"):
            self.require(getattr(self, field) >= 0, field, "must not be negative")

    @property
    def folders(self) -> dict[str, int]:
        """Folder -> weight, whichever of `source` and `sources` is given; {} if none is."""
        return {self.source: 1} if self.source else self.sources

    @property
    def adversarial(self) -> bool:
        return self.adversarial_weight > 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorSpec(Spec):
    """The StyleGAN-like 3-D critic of tokenizer training (spec §2.5; defaults are the paper's).

    `head` = 'flatten' reads the last feature map whole, so a run has one clip shape; 'mean' averages
    it over frames and space, for runs that mix images, clips and sizes.  `learning_rate` is a factor
    on `OPTIMIZER.learning_rate`.
    """

    base_channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4, 4, 4)
    head: str = "flatten"
    learning_rate: float = 1.0
    dtype: str = "float32"

    def validate(self) -> None:
        self.require_positive("base_channels", "learning_rate")
        self.require(len(self.multipliers) > 0, "multipliers", "needs one block at least")
        self.require_one_of("head", ("flatten", "mean"))
        self.require_one_of("dtype", DTYPES)


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

    `source` empty means `STORE.source`.  `temperature` is that of predicted frames, of which `samples`
    are drawn per clip: one is scored by itself, and with more of them their mean too, the prediction
    that a squared error asks for.
    """

    split: str = "validation"
    source: str = ""
    batch: int = 16
    batches: int = 8
    clips: int = 32
    known_frames: int = 5
    temperature: float = 1.0
    samples: int = 1

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


DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment(Spec):
    """Everything that describes a run.  Field names are the lower-case gin names."""

    clip: ClipSpec = ClipSpec()
    vocabulary: VocabularySpec = VocabularySpec()
    video_tokenizer: VideoTokenizerSpec = VideoTokenizerSpec()
    text: TextSpec = TextSpec()
    model: ModelSpec = ModelSpec()
    mesh: MeshSpec = MeshSpec()
    optimizer: OptimizerSpec = OptimizerSpec()
    train: TrainSpec = TrainSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    data: DataSpec = DataSpec()
    store: StoreSpec = StoreSpec()
    tokenizer_train: TokenizerTrainSpec = TokenizerTrainSpec()
    discriminator: DiscriminatorSpec = DiscriminatorSpec()
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


# Class name -> gin name: MODEL.layers = 24, --gin.TRAIN.steps=100.
GIN_NAMES: dict[str, str] = {
    hint.__name__: hint.gin_name() for hint in type_hints(Experiment).values()
}
