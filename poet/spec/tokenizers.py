"""The configurations of the tokenizers: their networks, and how they are trained.

Imported through `poet.spec`, like every other spec.
"""

from __future__ import annotations

import dataclasses
import math

from poet.spec.base import DTYPES, MOST_BATCH, MOST_FRAMES, MOST_SIDE, MOST_STEPS, Spec, UserError, setting

# The most that a term of a loss can be multiplied by.
MOST_WEIGHT = 1e6


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoTokenizerSpec(Spec):
    """MAGVIT-v2 network (spec §2.2-2.4; defaults are the paper's full-size figure).

    `stem` is a causal space-to-depth (t, h, w) in front of the first convolution, (1, 1, 1) in the
    paper; each level but the last halves h and w, and t where `temporal_downsample` says so.
    `stem_kernel` is that of the first and the last convolution: 1 beside a large stem is a patch
    embedding, and saves most of the FLOPs of a small network.
    `temporal_kernel` 3 leaves every convolution cubic; less is the most frames that any of them
    spans: 1 is the image network of the two-step training (spec §2.5).
    `up_kernel` is that of the convolution in front of each upsampling.
    `decoder_*` are those fields of a second, finer decoder: it goes on from the last features of the first, and its
    pixels are added to them.  There is one where any is set; 0 or () takes the network's own, and one level.
    `codes_of` is set by training alone, where it kept an encoder and trained its decoder
    (`TOKENIZER_TRAIN.frozen_encoder`): the fingerprint of the tokenizer that had that encoder.
    `path` holds frozen weights (`model.safetensors` + `spec.json`), empty while training.
    """

    # What makes pixels of codes; a run that reads codes alone takes it from the folder.
    DECODER = {
        "decoder_channels": "base_channels",
        "decoder_multipliers": "multipliers",
        "decoder_blocks": "blocks",
        "decoder_temporal_downsample": "temporal_downsample",
        "decoder_stem": "stem",
        "decoder_stem_kernel": "stem_kernel",
        "decoder_up_kernel": "up_kernel",
    }
    ADDED_LATER = ("temporal_kernel", "up_kernel", *DECODER, "codes_of")

    base_channels: int = setting(128, changes="arrays", at_least=1, at_most=8192)
    multipliers: tuple[int, ...] = setting((1, 2, 2, 4), changes="arrays", at_least=1, at_most=64)
    blocks: int = setting(4, changes="arrays", at_least=1, at_most=64)
    temporal_downsample: tuple[bool, ...] = setting((False, True, True), changes="arrays")
    stem: tuple[int, int, int] = setting((1, 1, 1), changes="arrays", at_least=1, at_most=64)
    stem_kernel: int = setting(3, changes="arrays", at_least=1, at_most=31)
    down_kernel: int = setting(3, changes="arrays", at_least=1, at_most=31)
    up_kernel: int = setting(3, changes="arrays", at_least=1, at_most=31)
    temporal_kernel: int = setting(3, changes="arrays", at_least=1, at_most=3)
    norm_groups: int = setting(32, changes="meaning", at_least=1, at_most=8192)
    bits: int = setting(18, changes="arrays", at_least=1, at_most=18)
    decoder_channels: int = setting(0, changes="decoder", at_least=0, at_most=8192)
    decoder_multipliers: tuple[int, ...] = setting((), changes="decoder", at_least=1, at_most=64)
    decoder_blocks: int = setting(0, changes="decoder", at_least=0, at_most=64)
    decoder_temporal_downsample: tuple[bool, ...] = setting((), changes="decoder")
    decoder_stem: tuple[int, ...] = setting((), changes="decoder", at_least=1, at_most=64)
    decoder_stem_kernel: int = setting(0, changes="decoder", at_least=0, at_most=31)
    decoder_up_kernel: int = setting(0, changes="decoder", at_least=0, at_most=31)
    dtype: str = setting("float32", changes="meaning", one_of=DTYPES)
    codes_of: str = setting("", changes="nothing")
    path: str = setting("", changes="nothing")

    def validate(self) -> None:
        self.require(len(self.decoder_stem) in (0, 3), "decoder_stem", "needs (t, h, w), or () for the encoder's")
        if self.fine:
            self.fine.validate()
            self.require(
                self.fine.factor == self.stem,
                "decoder_stem",
                f"the finer decoder makes {self.fine.factor} pixels (t, h, w) of a place of the first one's features, "
                f"and there are {self.stem}: change it, decoder_multipliers or decoder_temporal_downsample",
            )
        self.require(
            self.temporal_kernel > 1 or not any(self.temporal_downsample),
            "temporal_kernel",
            "a convolution that halves time spans at least 2 frames: take 2 or 3, or clear every "
            "flag of temporal_downsample",
        )
        self.require(
            len(self.temporal_downsample) == len(self.multipliers) - 1,
            "temporal_downsample",
            "needs one flag per level but the last",
        )
        for channels in (self.base_channels * m for m in self.multipliers):
            self.require(channels % self.norm_groups == 0, "norm_groups", f"must divide {channels} channels")

    @property
    def fine(self) -> VideoTokenizerSpec | None:
        """The network whose decoder is the second, finer one; None where there is none."""
        chosen = {field: getattr(self, name) for name, field in self.DECODER.items() if getattr(self, name)}
        if not chosen:
            return None
        empty = {name: type(getattr(self, name))() for name in self.DECODER}
        return dataclasses.replace(self, **{"multipliers": (1,), "temporal_downsample": (), **chosen, **empty})

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
                f"a clip of {frames} frames cannot be tokenized: their number must be 1 more than a "
                f"multiple of {t}; nearest are {low} and {low + t}"
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
class AudioTokenizerSpec(Spec):
    """SoundStream network and its residual vector quantizer (spec §3.1-3.2, §3.4).

    Defaults: AudioLM's codec of 16 kHz and 50 Hz; `dim` 256 is what reproduces the parameter counts
    of SoundStream's table.  `encoder_channels` and `decoder_channels` are those at the full sample
    rate; each stride doubles them.
    `denoise` is where the two-way switch (FiLM) stands: on the 'encoder' or the 'decoder' side of
    the quantizer, or '' for a network without one.
    `path` holds frozen weights (`model.safetensors` + `spec.json`), empty for a run without sound
    and while training.
    """

    sample_rate_hz: int = setting(16_000, changes="meaning", at_least=1, at_most=384_000)
    strides: tuple[int, ...] = setting((2, 4, 5, 8), changes="arrays", at_least=1, at_most=1024)
    encoder_channels: int = setting(32, changes="arrays", at_least=1, at_most=8192)
    decoder_channels: int = setting(32, changes="arrays", at_least=1, at_most=8192)
    dim: int = setting(256, changes="arrays", at_least=1, at_most=8192)
    dilations: tuple[int, ...] = setting((1, 3, 9), changes="arrays", at_least=1, at_most=1024)
    levels: int = setting(12, changes="arrays", at_least=1, at_most=64)
    codes: int = setting(1024, changes="arrays", at_least=2, at_most=65_536)
    denoise: str = setting("", changes="arrays", one_of=("", "encoder", "decoder"))
    dtype: str = setting("float32", changes="meaning", one_of=DTYPES)
    path: str = setting("", changes="nothing")

    def validate(self) -> None:
        self.require(len(self.strides) > 0, "strides", "names one stride at least")

    @property
    def hop(self) -> int:
        """Samples per frame of codes: 320."""
        return math.prod(self.strides)

    def frames(self, samples: int) -> int:
        """Whole frames of codes in that many samples, at least one: 34,000 samples have 106.

        What is left over (spec §3.4 trims 80 samples) is decoded from the last frame.
        """
        return max(1, samples // self.hop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerTrainSpec(Spec):
    """`poet tokenizer-train`: batches and the weights of every loss term (spec §2.1, §2.5).

    `modality` is what is trained: the 'video' or the 'audio' tokenizer.  Sources, `split`, `batch`,
    `init_from` and `gan_start` hold for both; the other fields are the video tokenizer's, and those
    of audio are `AUDIO_TRAIN`'s.

    Clips: of `source`, one folder, or of `sources`, folder -> weight: of sum(weights) examples each
    folder gives exactly its weight.  A folder is a TFDS folder (`.../name/1.0.0`) or one of clips.

    Batches: `frames` = 0 trains on the run's `CLIP.frames`; `image_fraction` is the fraction of steps on
    one-frame clips; `crops` lists (height, width) of random crops of `CLIP`'s frames, each used
    equally often at an equal number of pixels per step, () takes whole frames.

    Start: `init_from` names a trained tokenizer whose weights are taken over; those of an image
    tokenizer (kernels of one frame) are inflated into the last temporal tap (spec §2.5).

    Memory: `remat` computes the inside of residual blocks again in the backward pass instead of
    storing it.

    `frozen_encoder` trains the decoder alone: codes stay those of `init_from`, and so does the fingerprint.

    Quantizer: `entropy_groups` = 0 takes the batch entropy exactly over all codes; `entropy_samples`
    = 0 takes it over all tokens of a step, else over about that many of them.

    Perceptual: `perceptual` names a network of `poet.tokenizers.video.perceptual`, '' drops the term;
    `perceptual_path` holds weights that the user brings; `perceptual_frames` = 0 compares every
    frame, else that many random ones of each clip.

    Round trip: `round_trip_weight` is that of the loss between the bits of a clip and those of its reconstruction,
    encoded again; 0 drops it, and it starts at `round_trip_start`.

    Derived conditions: `derived_fraction` of the examples are conditions derived from clips (`CONDITIONING`):
    structure if the source has depth, clips with holes, with repeated frames, so that their codes are as good.

    Adversarial: `adversarial_weight` = 0 trains without a discriminator (`DISCRIMINATOR`); before
    step `gan_start` the discriminator is not trained; `r1_every` > 1 applies R1 at every so many steps, that
    many times as strong.
    """

    RENAMED = {"image_share": "image_fraction", "derived_share": "derived_fraction"}

    modality: str = setting("video", changes="arrays", one_of=("video", "audio"))
    source: str = setting("", changes="course")
    sources: dict[str, int] = setting(default_factory=dict, changes="course", at_least=1, at_most=10**6)
    split: str = setting("train", changes="course")
    batch: int = setting(16, changes="meaning", at_least=1, at_most=MOST_BATCH)
    frames: int = setting(0, changes="meaning", at_least=0, at_most=MOST_FRAMES)
    image_fraction: float = setting(0.0, changes="meaning", at_least=0, at_most=1)
    crops: tuple[tuple[int, int], ...] = setting((), changes="meaning", at_least=1, at_most=MOST_SIDE)
    remat: bool = setting(False, changes="nothing")
    init_from: str = setting("", changes="nothing")
    frozen_encoder: bool = setting(False, changes="meaning")
    l2_weight: float = setting(5.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    commitment_weight: float = setting(0.25, changes="course", at_least=0, at_most=MOST_WEIGHT)
    entropy_weight: float = setting(0.1, changes="course", at_least=0, at_most=MOST_WEIGHT)
    entropy_anneal: float = setting(3.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    entropy_anneal_steps: int = setting(2000, changes="course", at_least=0, at_most=MOST_STEPS)
    entropy_groups: int = setting(0, changes="course", at_least=0, at_most=18)
    entropy_samples: int = setting(0, changes="course", at_least=0, at_most=2**24)
    temperature: float = setting(0.01, changes="course", above=0, at_most=100)
    perceptual: str = setting("", changes="course")
    perceptual_path: str = setting("", changes="nothing")
    perceptual_weight: float = setting(0.1, changes="course", at_least=0, at_most=MOST_WEIGHT)
    perceptual_frames: int = setting(0, changes="course", at_least=0, at_most=MOST_FRAMES)
    round_trip_weight: float = setting(0.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    round_trip_start: int = setting(0, changes="course", at_least=0, at_most=MOST_STEPS)
    derived_fraction: float = setting(0.0, changes="course", at_least=0, at_most=1)
    adversarial_weight: float = setting(0.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    gan_start: int = setting(0, changes="course", at_least=0, at_most=MOST_STEPS)
    r1_weight: float = setting(10.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    r1_every: int = setting(1, changes="course", at_least=1, at_most=MOST_STEPS)
    lecam_weight: float = setting(0.001, changes="course", at_least=0, at_most=MOST_WEIGHT)
    lecam_decay: float = setting(0.999, changes="course", at_least=0, below=1)
    ema_decay: float = setting(0.999, changes="course", at_least=0, below=1)

    def validate(self) -> None:
        self.require(not (self.source and self.sources), "sources", "give it or source, not both")
        self.require(
            self.modality == "video" or not self.frozen_encoder, "frozen_encoder", "is of the video tokenizer alone"
        )

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

    base_channels: int = setting(128, changes="arrays", at_least=1, at_most=8192)
    multipliers: tuple[int, ...] = setting((2, 4, 4, 4, 4), changes="arrays", at_least=1, at_most=64)
    head: str = setting("flatten", changes="arrays", one_of=("flatten", "mean"))
    learning_rate: float = setting(1.0, changes="course", above=0, at_most=1000)
    dtype: str = setting("float32", changes="nothing", one_of=DTYPES)

    def validate(self) -> None:
        self.require(len(self.multipliers) > 0, "multipliers", "needs at least one block")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AudioTrainSpec(Spec):
    """Settings of `poet tokenizer-train` for the audio tokenizer (spec §3.2-3.3).

    Batches: random excerpts of `samples` samples.  Every excerpt is mixed with one of `noise_source`
    at a gain sampled from `noise_gain_db`, if set; the network then learns its denoise switch.

    Quantizer: moving averages of `codebook_decay`; vectors used less, on that average, than
    `dead_fraction` of what a vector of their level is used are replaced; `dropout` is the fraction of
    excerpts that are quantized with a random number of levels, the others with all.

    Losses: `mel_weight`, `adversarial_weight` and `feature_weight` are the paper's 1, 1 and 100;
    it states no `commitment_weight`.  `wave_weight` is that of the mean absolute difference of the
    waves, which the paper has not (EnCodec has) and which lines phases up early in a short training.
    `adversarial_weight` = 0 trains without discriminators.

    Discriminators: `wave_scales` of them hear the wave, each at half the rate of the one before; the
    channels are those of their first layers, and no layer of the former has more than
    `wave_channels_max`.  `critic_rate` is a factor on `OPTIMIZER.learning_rate`.
    """

    REMOVED = ("dead_below",)
    RENAMED = {"dead_share": "dead_fraction"}

    samples: int = setting(16_000, changes="meaning", at_least=1, at_most=2**26)
    noise_source: str = setting("", changes="course")
    noise_gain_db: tuple[float, float] = setting((-30.0, 0.0), changes="course", at_least=-200, at_most=100)
    mel_weight: float = setting(1.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    wave_weight: float = setting(0.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    adversarial_weight: float = setting(1.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    feature_weight: float = setting(100.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    commitment_weight: float = setting(1.0, changes="course", at_least=0, at_most=MOST_WEIGHT)
    codebook_decay: float = setting(0.99, changes="course", at_least=0, below=1)
    dead_fraction: float = setting(0.05, changes="course", at_least=0, below=1)
    dropout: float = setting(1.0, changes="course", at_least=0, at_most=1)
    kmeans_iterations: int = setting(10, changes="nothing", at_least=1, at_most=10_000)
    wave_scales: int = setting(3, changes="arrays", at_least=1, at_most=16)
    wave_channels: int = setting(16, changes="arrays", at_least=1, at_most=8192)
    wave_channels_max: int = setting(1024, changes="arrays", at_least=1, at_most=65_536)
    stft_channels: int = setting(32, changes="arrays", at_least=1, at_most=8192)
    critic_rate: float = setting(1.0, changes="course", above=0, at_most=1000)

    def validate(self) -> None:
        self.require(self.noise_gain_db[0] <= self.noise_gain_db[1], "noise_gain_db", "is (least, most)")

    @property
    def adversarial(self) -> bool:
        return self.adversarial_weight > 0
