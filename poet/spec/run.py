"""How a run is done: devices, optimizer, length, checkpoints, the mixture.

Imported through `poet.spec`, like every other spec.
"""

from __future__ import annotations

import dataclasses
import math

from poet.spec.base import DTYPES, MOST_BATCH, MOST_SEED, MOST_STEPS, Spec, UserError, setting


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSpec(Spec):
    """Mesh axes data (across slices) x fsdp x sequence x tensor; one may be -1: all remaining devices.

    `sequence` splits the positions of long layouts: activations of a clip then take a part of the memory
    on each device, and `sequence` x `tensor` must divide the key-value heads.
    """

    data: int = setting(1, changes="nothing", at_least=-1, at_most=2**20)
    fsdp: int = setting(-1, changes="nothing", at_least=-1, at_most=2**20)
    sequence: int = setting(1, changes="nothing", at_least=-1, at_most=2**20)
    tensor: int = setting(1, changes="nothing", at_least=-1, at_most=2**20)

    def validate(self) -> None:
        for field in ("data", "fsdp", "sequence", "tensor"):
            self.require(getattr(self, field) != 0, field, "must be positive, or -1 for the rest")
        free = [f for f in ("data", "fsdp", "sequence", "tensor") if getattr(self, f) == -1]
        self.require(len(free) <= 1, free[-1] if free else "fsdp", "only one axis may be -1")

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """(data, fsdp, sequence, tensor) sizes for this many devices; UserError where they do not divide them."""
        sizes = [self.data, self.fsdp, self.sequence, self.tensor]
        fixed = math.prod(s for s in sizes if s > 0)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            raise UserError(
                f"MESH data={self.data} fsdp={self.fsdp} sequence={self.sequence} tensor={self.tensor} "
                f"needs {'a multiple of ' if -1 in sizes else ''}{fixed} devices, {devices} present; "
                "set one axis to -1, or change the sizes so that their product is the device count"
            )
        data, fsdp, sequence, tensor = (devices // fixed if s == -1 else s for s in sizes)
        return data, fsdp, sequence, tensor


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec(Spec):
    """An optimizer with linear warm-up and cosine decay (spec §7: the paper publishes none).

    `name`: 'adamw'; 'adafactor', whose second moments are a row and a column per matrix; 'muon', which
    orthogonalises the momentum of the blocks' matrices and leaves the rest to AdamW.
    `state_dtype` is that of the first moments; 'bfloat16' halves them.
    `log_norms`: the log has, for every table of parameters, the norm of its gradient and that of its update over that
    of the table.
    """

    name: str = setting("adamw", changes="arrays", one_of=("adamw", "adafactor", "muon"))
    state_dtype: str = setting("float32", changes="arrays", one_of=DTYPES)
    learning_rate: float = setting(1e-3, changes="course", above=0, at_most=100)
    warmup_steps: int = setting(100, changes="course", at_least=0, at_most=MOST_STEPS)
    final_fraction: float = setting(0.1, changes="course", at_least=0, at_most=1)
    b1: float = setting(0.9, changes="course", at_least=0, below=1)
    b2: float = setting(0.95, changes="course", at_least=0, below=1)
    weight_decay: float = setting(0.1, changes="course", at_least=0, at_most=10)
    clip_norm: float = setting(1.0, changes="course", above=0, at_most=1e9)
    log_norms: bool = setting(False, changes="nothing")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSpec(Spec):
    """Length, seed and reporting of a training run, for the language model and tokenizers alike.

    `init_from` is a checkpoint, or the work dir of a run, whose parameters training starts with
    (task adaptation, spec §1.7); the optimizer starts anew.  Clips may be longer or larger than its own, and
    `MODEL.layers` more (`poet.models.deepening`); the meaning of ids and positions may not differ otherwise.
    `init_other_codes` allows codes of other tokenizers than its own, such as the same ones trained further.
    `microbatches` > 1 cuts every batch into that many parts, whose gradients are added up and divided by
    the tokens of all of them before the update: the memory of one part, for the same batch.
    `step_weight`: 'steps', every step counts the same, whatever its group; 'tokens', it counts by the tokens
    that it predicts, beside the mean over the groups' steps.
    `bit_flips`: up to this fraction of the bits of conditioning and earlier visual codes is flipped in the input,
    not in the labels; a fraction is sampled for each clip (InfinityStar's self-correction, 2511.04675).
    `trackers`: services that the log goes to as well, see `poet.training.trackers`.
    """

    steps: int = setting(1000, changes="course", at_least=1, at_most=MOST_STEPS)
    init_from: str = setting("", changes="nothing")
    init_other_codes: bool = setting(False, changes="nothing")
    microbatches: int = setting(1, changes="nothing", at_least=1, at_most=MOST_BATCH)
    seed: int = setting(0, changes="meaning", at_least=0, at_most=MOST_SEED)
    log_every: int = setting(10, changes="nothing", at_least=1, at_most=MOST_STEPS)
    eval_every: int = setting(0, changes="nothing", at_least=0, at_most=MOST_STEPS)
    eval_batches: int = setting(4, changes="nothing", at_least=1, at_most=MOST_STEPS)
    z_loss: float = setting(1e-4, changes="course", at_least=0, at_most=1)
    loss_vocabulary: str = setting("legal", changes="course", one_of=("legal", "full"))
    step_weight: str = setting("steps", changes="course", one_of=("steps", "tokens"))
    bit_flips: float = setting(0.0, changes="course", at_least=0, at_most=0.5)
    sample_every: int = setting(0, changes="nothing", at_least=0, at_most=MOST_STEPS)
    trackers: tuple[str, ...] = setting((), changes="nothing", one_of=("wandb", "mlflow"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointSpec(Spec):
    """A checkpoint every `every` steps, or after `every_minutes` without one, and at the end; 0 is never.

    These stay: the newest `keep`, those of steps that `keep_every` divides (0: none), and the one at whose step
    the metric `best` was best: its name in the log, such as 'validation/loss'.  `best_is` says which values are
    good.  Only what was measured at the very step of a checkpoint counts, so `every` and `TRAIN.eval_every` must
    meet.
    `local`, such as '/dev/shm/poet', holds a snapshot of each process every `local_every` steps, in the memory of its
    machine: a restart there loses no more.  It takes twice the memory of the state that a machine's devices hold.
    """

    every: int = setting(200, changes="nothing", at_least=0, at_most=MOST_STEPS)
    every_minutes: float = setting(0.0, changes="nothing", at_least=0, at_most=1e6)
    keep: int = setting(2, changes="nothing", at_least=1, at_most=MOST_STEPS)
    keep_every: int = setting(0, changes="nothing", at_least=0, at_most=MOST_STEPS)
    best: str = setting("", changes="nothing")
    best_is: str = setting("lowest", changes="nothing", one_of=("lowest", "highest"))
    local: str = setting("", changes="nothing")
    local_every: int = setting(10, changes="nothing", at_least=1, at_most=MOST_STEPS)

    def validate(self) -> None:
        self.require(bool(self.every or self.every_minutes), "every", "or CHECKPOINT.every_minutes must be positive")
        self.require(
            not self.every or self.keep_every % self.every == 0,
            "keep_every",
            f"must be a multiple of CHECKPOINT.every = {self.every}, or no checkpoint of these steps is written",
        )
        self.require(
            bool(self.every or not self.best), "best", "needs CHECKPOINT.every: a metric is measured at fixed steps"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSpec(Spec):
    """The mixture: a token store, a mixture rate per task, and clips per step of each group.

    A step trains one group of tasks, with a frequency that is the sum of its tasks' rates.  A run that resumes
    with other rates of the same groups continues each task where it was.
    `image_fractions` are phases of a run, (fraction of its steps at which the phase ends, fraction of its steps that
    train images): ((0.25, 0.9), (1.0, 0.1)) is the paper's (VideoPoet §5.1); () leaves it to the rates.

    `batch` counts sequences of the longest group; shorter groups take more (equal tokens per step)
    when `equal_tokens` is set, in multiples of `batch_multiple`, or of `batch` where that is 0: the
    devices that share a batch must divide it.  `text_dropout` hides the text of that fraction of samples, so that
    classifier-free guidance has an unconditional branch (spec §1.3: 10 %).  `condition_dropout` does the same for each
    stream of the condition, independently: its codes are hidden (`Special.HIDDEN`).
    `silent_clips`: clips without a sound track in tasks with sound: 'skip' gives them no loss;
    'train' takes their sound as silence.
    """

    RENAMED = {"image_shares": "image_fractions", "rates": "mixture_rates"}

    store: str = setting("", changes="nothing")
    mixture_rates: dict[str, float] = setting(default_factory=dict, changes="course", at_least=0, at_most=1e6)
    batch: int = setting(16, changes="meaning", at_least=1, at_most=MOST_BATCH)
    batch_multiple: int = setting(0, changes="meaning", at_least=0, at_most=MOST_BATCH)
    equal_tokens: bool = setting(True, changes="meaning")
    image_fractions: tuple[tuple[float, float], ...] = setting((), changes="course", at_least=0, at_most=1)
    text_dropout: float = setting(0.1, changes="course", at_least=0, below=1)
    condition_dropout: float = setting(0.0, changes="course", at_least=0, below=1)
    silent_clips: str = setting("skip", changes="course", one_of=("skip", "train"))
    seed: int = setting(0, changes="meaning", at_least=0, at_most=MOST_SEED)

    def validate(self) -> None:
        self._check_image_fractions()
        if self.mixture_rates:
            self.require(sum(self.mixture_rates.values()) > 0, "mixture_rates", "must not all be zero")

    def _check_image_fractions(self) -> None:
        ends = [0.0, *(until for until, _ in self.image_fractions)]
        rising = all(a < b for a, b in zip(ends, ends[1:])) and ends[-1] in (0.0, 1.0)
        self.require(rising, "image_fractions", "needs rising fractions of the steps, the last of them 1.0")
