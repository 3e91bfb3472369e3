"""The params sections of training; importing them imports nothing heavy."""

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, ValidationInfo, field_validator

from zimage.core.section import PLAIN, Section, told_by_keys

Target = Literal[
    "attention",
    "feed_forward",
    "modulation",
    "noise_refiner",
    "context_refiner",
    "image_embedder",
    "caption_embedder",
    "time_embedder",
    "final_layer",
]
Adapter = Literal["lora", "lokr", "dora"]
OptimiserName = Literal[
    "adamw", "adamw_8bit", "adafactor", "prodigy", "prodigy_schedule_free", "schedule_free", "came", "muon"
]
FIND_A_RATE: tuple[OptimiserName, ...] = ("prodigy", "prodigy_schedule_free")  # one for all layers
LossWeight = Literal["constant", "bell", "half_bell", "cosmap", "sigma", "sigma_sqrt", "min_snr"]
Resume = Literal["exact", "any", "restart"]
TrackerName = Literal["wandb", "mlflow", "trackio"]


class ShiftByTokens(Section):
    """A shift that grows with the picture: its logarithm is on the line through two points, as in diffusers."""

    tokens: list[int] = Field(min_length=2, max_length=2)
    """Of two pictures, (height / 16) x (width / 16); FLUX, Lumina 2: 256 and 4096; Qwen-Image: 256 and 8192."""
    log_shifts: list[float] = Field(min_length=2, max_length=2)
    """Natural logarithm of the shift of each; FLUX, Lumina 2: 0.5 and 1.15; Qwen-Image: 0.5 and 0.9."""

    @field_validator("tokens")
    @classmethod
    def _are_two_points(cls, tokens: list[int]) -> list[int]:
        if not 0 < tokens[0] < tokens[1]:
            raise ValueError("the line needs two rising numbers of tokens, such as [256, 4096]")
        return tokens


Shift = Annotated[
    Annotated[float, Tag(PLAIN)] | Annotated[ShiftByTokens, Tag("(ShiftByTokens)")], told_by_keys(ShiftByTokens)
]


class ModeParams(Section):
    """Heavy tails around a mode (arXiv 2403.03206, section 3.1): `mode` of diffusers, `HEAVY_TAIL` of OneTrainer."""

    mode_scale: float = Field(ge=-1, le=1.75)
    """Above 0 the middle comes more often, below 0 both ends; 1.29 in the paper and in diffusers' scripts."""


class BetaParams(Section):
    """Beta distribution of sigma, as SimpleTuner's `flow_use_beta_schedule`."""

    alpha: float = Field(gt=0)
    """Above `beta` there is more noise, below less; 2 and 2 rise from both ends to the middle."""
    beta: float = Field(gt=0)
    """See alpha."""


class MixturePart(Section):
    """A part of the samples, with a logit-normal distribution of their own."""

    share: float = Field(gt=0, le=1)
    """Of the samples; the shares of all parts are 1 together."""
    mean: float
    """Of the normal; of musubi-tuner's `logsnr` it is -logit_mean / 2."""
    std: float = Field(gt=0)
    """Of the normal; of musubi-tuner's `logsnr` it is logit_std / 2."""
    shift: Shift
    """As `timestep_sampling.shift`, which a mixture does not read."""

    @field_validator("shift")
    @classmethod
    def _is_positive(cls, shift: float | ShiftByTokens) -> float | ShiftByTokens:
        return _above_zero(shift)


class MixtureParams(Section):
    """Several distributions at once, as musubi-tuner's `qinglong_flux` and `qinglong_qwen`."""

    mixture: list[MixturePart] = Field(min_length=2)
    """Its parts."""

    @field_validator("mixture")
    @classmethod
    def _is_a_whole(cls, mixture: list[MixturePart]) -> list[MixturePart]:
        if abs((total := sum(part.share for part in mixture)) - 1) > 1e-6:
            raise ValueError(f"the shares of its parts add up to {total:g}; they have to be 1 together")
        return mixture


def _above_zero(shift: float | ShiftByTokens) -> float | ShiftByTokens:
    if isinstance(shift, float | int) and shift <= 0:
        raise ValueError("input should be greater than 0")
    return shift


Distribution = Annotated[
    Annotated[Literal["logit_normal", "uniform", "scheduler", "cosmap"], Tag(PLAIN)]
    | Annotated[ModeParams, Tag("(ModeParams)")]
    | Annotated[BetaParams, Tag("(BetaParams)")]
    | Annotated[MixtureParams, Tag("(MixtureParams)")],
    told_by_keys(ModeParams, BetaParams, MixtureParams),
]


class TimestepSamplingParams(Section):
    """Distribution of sigma, the share of noise, in (0, 1)."""

    distribution: Distribution
    """logit_normal: sigmoid of a normal; uniform; scheduler: uniform on the grid the base's sampler walks; cosmap: as
    SD3, the middle a little more; or {mode_scale: 1.29}, {alpha: 2.0, beta: 2.0}, {mixture: [{share: …}, …]}."""
    mean: float
    """Of the normal; logit_normal only."""
    std: float = Field(gt=0)
    """Of the normal; logit_normal only."""
    shift: Shift
    """Moves towards noise above 1, towards detail below; or by the picture's tokens: {tokens: [256, 4096], log_shifts:
    [0.5, 1.15]}; not used by `scheduler`, which has the base's own, and mixtures."""
    stratified: bool
    """Spread the samples evenly over all steps instead of drawing each alone: less noise in the gradient."""

    @field_validator("shift")
    @classmethod
    def _is_positive(cls, shift: float | ShiftByTokens) -> float | ShiftByTokens:
        return _above_zero(shift)


class OptimiserParams(Section):
    """The optimiser, clipping and the moving average."""

    name: OptimiserName
    """adamw; adamw_8bit: moments in 8 bits, needs `.[8bit]`; adafactor, came: moments of rows and columns; muon:
    orthogonal steps; prodigy: finds the learning rate; schedule_free: AdamW with an average instead of a schedule;
    prodigy_schedule_free: both."""
    learning_rate: float = Field(gt=0)
    """Of the down-matrices; moved by the schedule; not read by prodigy and prodigy_schedule_free, which find it."""
    lora_plus_ratio: float = Field(gt=0)
    """Learning rate of up-matrices over that of down-matrices; 1 is plain LoRA, 4 to 16 is LoRA+ (arXiv 2402.12354)."""
    betas: list[float] = Field(min_length=2, max_length=2)
    """Decay of AdamW's two averages; muon's momentum is the first; not read by adafactor."""
    weight_decay: float = Field(ge=0)
    """Decoupled, per step, times the learning rate."""
    clip_norm: float = Field(ge=0)
    """Largest norm of all gradients together; larger ones are scaled down; 0 for no limit; not read by
    prodigy_schedule_free, which scales its own steps."""
    ema_decay: float = Field(ge=0, lt=1)
    """Of the moving average that becomes the LoRA; 0 for none: the last values become it; schedule-free: none."""
    max_layer_norm: float = Field(default=0.0, ge=0)
    """Largest norm of the change that a LoRA makes to one layer's weight: after each step a larger one is scaled down,
    as by kohya's `scale_weight_norms`; 0 for no limit."""


class ScheduleParams(Section):
    """The learning-rate schedule."""

    type: Literal["constant", "cosine"]
    """After the warm-up: stay, or fall along half a cosine."""
    warmup_steps: int = Field(ge=0)
    """Steps over which it rises from nothing."""
    final_fraction: float = Field(ge=0, le=1)
    """Of the learning rate, at the end of `cosine`."""


class PriorPreservationParams(Section):
    """Prior preservation: without it, every member of the class turns into the subject."""

    weight: float = Field(gt=0)
    """Of this loss beside the subject's."""
    every: int = Field(ge=1)
    """Steps from one that preserves to the next."""
    batch_size: int = Field(ge=1)
    """Samples in it, on all devices together."""
    pictures: Literal["crops", "class"]
    """crops: the subject's own, captioned without the trigger; class: the class pictures of encode."""
    target: Literal["base", "picture"]
    """base: what the base model itself predicts; picture: the truth, for class pictures."""


class TargetParams(Section):
    """Layers of one kind, some of their blocks or with values of their own; all but `layers` may be left out."""

    layers: Target
    """Their kind."""
    blocks: str | None = Field(default=None, pattern=r"^\d{1,3}(-\d{1,3})?$")
    """Which of the base's blocks, counted from 0, both ends included, such as 10-29; null for all."""
    rank: int | None = Field(default=None, ge=1)
    """Of their adapters; null for `train.rank`."""
    learning_rate_factor: float = Field(default=1.0, gt=0)
    """By what the learning rate is multiplied; optimisers that find one for all layers take 1 only."""

    @field_validator("blocks", mode="before")
    @classmethod
    def _is_text(cls, blocks: Any) -> Any:
        return str(blocks) if isinstance(blocks, int) and not isinstance(blocks, bool) else blocks

    @field_validator("blocks")
    @classmethod
    def _rise(cls, blocks: str | None, info: ValidationInfo) -> str | None:
        if blocks is None:
            return None
        if info.data.get("layers") in {"image_embedder", "caption_embedder", "time_embedder", "final_layer"}:
            raise ValueError(f"{info.data['layers']} is one layer outside the blocks; leave `blocks` out")
        first, _, last = blocks.partition("-")
        if int(last or first) < int(first):
            raise ValueError("the last block comes before the first one; write them as 10-29")
        return blocks


TargetItem = Annotated[
    Annotated[Target, Tag(PLAIN)] | Annotated[TargetParams, Tag("(TargetParams)")], told_by_keys(TargetParams)
]


class LokrParams(Section):
    """The shape of a LoKr, the Kronecker product of a small matrix w1 and a large one w2; `adapter: lokr` only."""

    factor: int = Field(ge=-1)
    """Rows and columns of w1 where it divides the layer's widths; -1: w1 and w2 of about the same size."""
    full_matrix: bool
    """Keep w2 whole instead of as a product of rank `train.rank`; the strength is 1 then."""
    alpha: float = Field(gt=0)
    """The strength is alpha / rank, and is multiplied into w1 in the file."""

    @field_validator("factor")
    @classmethod
    def _is_a_factor(cls, factor: int) -> int:
        if factor in {0, 1}:
            raise ValueError("a factor is 2 or more, or -1 for two matrices of about the same size")
        return factor


class AdapterParams(Section):
    """A LoRA that is merged into the frozen weights while training, and is no part of the result."""

    file: str
    """A LoRA file of any dialect."""
    sha256: str
    """Of the file, in hex."""
    strength: float
    """1 is the whole of it."""


class InitLoraParams(Section):
    """A LoRA with whose change a training begins."""

    file: str
    """A LoRA file of any dialect."""
    sha256: str
    """Of the file, in hex."""


class SampleParams(Section):
    """Pictures that are made at checkpoints, of the prompts encode was given."""

    steps: int = Field(ge=1)
    """Euler steps."""
    guidance_scale: float = Field(ge=0)
    """As diffusers' ZImagePipeline counts: 0 none, 4 is 5 elsewhere."""
    seed: int
    """Of their noise, the same at every checkpoint."""
    at_start: bool = False
    """Also before the first step: the base, or `train.init_lora`."""


class StopParams(Section):
    """An end before the last step, by the likeness of the sample pictures; see zimage.training.likeness."""

    likeness: Literal["plateau"]
    """plateau: end where the pictures came no nearer to the training photos for some checkpoints."""
    patience: int = Field(ge=1)
    """Checkpoints without a gain after which the run ends."""
    min_gain: float = Field(ge=0)
    """Rise of the mean closeness (0 to 1) that counts as a gain."""


class MemoryParams(Section):
    """What saves memory and time at the cost of other rounding; what costs none is in `MachineParams`."""

    base_quantization: Literal["none", "fp8", "int8", "nf4"]
    """Format of the blocks' frozen weights: none, in the precision of the products; or 8 or 4 bits."""
    compile: bool
    """Let torch.compile fuse each block; a minute or more at the start, worth it from a thousand steps on a GPU."""


class MachineParams(Section):
    """Use of a machine's memory in training, and trackers. No value changes the LoRA, so no stage depends on them.

    `ZIMAGE_MACHINE` sets values of one machine: `ZIMAGE_MACHINE="checkpointing=full offloaded_blocks=15"`.
    """

    checkpointing: Literal["auto", "none", "selective", "full"]
    """What the backward pass recomputes: auto decides by free memory; selective needs `train.memory.compile`."""
    offloaded_blocks: int = Field(ge=0)
    """Main blocks whose weights wait in the machine's memory and visit the GPU when their turn comes."""
    cuda_graphs: bool
    """Record a CUDA graph for each shape: less waiting for launches at 512 px, more memory; a CPU knows none."""
    trackers: list[TrackerName] = Field(default_factory=list)
    """Tools besides TensorBoard that show a training, each an extra of its name; all offline, with numbers only."""
    tracking_folder: str = "~/zimage-tracking"
    """Where their stores are, for all trainings of the machine."""


class TrainParams(Section):
    """All settings of training."""

    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(ge=1)
    """Samples in a step, on all devices together."""
    micro_batch_size: int = Field(ge=1)
    """Samples computed together; a batch is cut into such pieces, which processes on a CPU share."""
    targets: list[TargetItem] = Field(min_length=1)
    """Kinds of layers that get an adapter; one may be {layers: attention, blocks: 10-29, rank: 8, learning_rate_factor:
    0.5} instead of a word, and all but `layers` may be left out."""
    adapter: Adapter
    """lora: the product of two thin matrices; lokr: the Kronecker product of a small and a large one; dora: a LoRA and
    the length of each row of the weight."""
    rank: int = Field(ge=1)
    """Of every adapter; the alpha of a LoRA or DoRA is the same, so its strength is 1."""
    lokr: LokrParams
    dropout: float = Field(ge=0, lt=1)
    """Of the inputs of LoRAs; 0 for a DoRA or LoKr."""
    precision: Literal["float32", "bfloat16"]
    """Of the matrix products; adapters and optimiser are float32 in any case."""
    optimiser: OptimiserParams
    schedule: ScheduleParams
    timestep_sampling: TimestepSamplingParams
    loss_weight: LossWeight
    """What noise levels count: constant, bell (middle ones more), half_bell (middle and low ones more), cosmap (middle
    ones a little more), sigma (high ones more), sigma_sqrt (diffusers' name of 1 / sigma^2: low ones far more) or
    min_snr (Min-SNR with gamma 5: those around 0.3 most, both ends hardly)."""
    face_weight: float = Field(gt=0)
    """How much more the face counts than the rest of its picture; 1 for alike."""
    caption_dropout: float = Field(ge=0, lt=1)
    """Share of captions that the empty text takes the place of."""
    latents: Literal["mean", "sample"]
    """What a picture is: the mean of the autoencoder's posterior, or a new sample of it each time."""
    prior_preservation: PriorPreservationParams | None
    """What keeps the class as it was; null for nothing."""
    training_adapter: AdapterParams | None
    """For Turbo: the de-distillation LoRA its frozen weights wear; null for Base and De-Turbo."""
    init_lora: InitLoraParams | None = None
    """A LoRA to go on from, changed to `rank` where its own is larger; null for new matrices."""
    memory: MemoryParams
    checkpoint_every: int = Field(ge=1)
    """Steps between LoRAs that are kept, and from which a killed run goes on; a stopped one loses no step."""
    resume: Resume
    """On another kind of device, which rounds otherwise: exact refuses to go on, any goes on, restart begins anew."""
    samples: SampleParams | None
    """Pictures at each checkpoint; null for none."""
    stop: StopParams | None
    """Whether likeness may end the run early, which suits a constant learning rate; null: it takes all steps."""
    save_dtype: Literal["float32", "bfloat16"]
    """Of the LoRA files."""
    divergence_factor: float = Field(gt=1)
    """The run stops when its mean loss has grown this many times."""
    seed: int
    """Of adapters, order, captions, sigma and noise."""

    @field_validator("stop")
    @classmethod
    def _has_pictures_to_stop_by(cls, stop: StopParams | None, info: ValidationInfo) -> StopParams | None:
        if stop is not None and info.data.get("samples", stop) is None:
            raise ValueError("it looks at the pictures of checkpoints, but train.samples is null; ask for samples")
        return stop

    @field_validator("schedule")
    @classmethod
    def _warms_up_within_the_run(cls, schedule: ScheduleParams, info: ValidationInfo) -> ScheduleParams:
        steps = info.data.get("steps")  # absent where it is wrong itself
        if steps is not None and schedule.warmup_steps > steps:
            raise ValueError(
                f"warmup_steps is more than train.steps, {steps}, so the learning rate would never be reached; set "
                f"train.schedule.warmup_steps to {steps} or less, or train longer"
            )
        return schedule
