"""Training presets: functions that return a complete configuration, with where its numbers come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training run computes; it goes into the model card whole.

    `options` are the architecture's; `saved_options` replace some of them in the saved model (and not in training or
    validation): the weights of a network that was trained at stride 16 also run at stride 8.
    `optimizer`: "sgd" with `momentum`, the papers'; or "adamw", whose steps do not depend on the scale of a weight: right
    for a backbone whose batch norm is folded away, where SGD must creep. `learning_rate` is the backbone's; the head's is
    `head_multiplier` times that, and its bias twice that again without weight decay (the released prototxts).
    `schedule`: "poly" or "step" (with `step_every`). `ema`: decay of the running mean of the weights that is validated
    and saved, 0 for none. `frozen_layers`: how many of the backbone's first layers (`backbone.layers()`) stay as loaded,
    which also spares their gradients, the dearest ones. `dropout`: share of the backbone's output channels that a
    training step leaves out. `loss`: labels at "full" resolution or every "stride"-th (deeplab.losses). `colour`,
    `scales`, `crop`: deeplab.transforms.
    `batch_size`: crops of one optimizer step, over all workers. `clip_norm`: the gradient is scaled down to this
    Euclidean length where it is longer; 0 is off. `precision`: of the forward pass; weights stay float32.
    `batch_norm`: "frozen" as loaded, the papers' way; or "sync", learnt, with statistics over all workers' crops (of
    one pass, where gradients are accumulated).
    """

    preset: str
    architecture: str
    options: dict[str, Any] = field(default_factory=dict)
    saved_options: dict[str, Any] = field(default_factory=dict)
    steps: int = 20_000
    batch_size: int = 10
    crop: int = 321
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 2.5e-4
    head_multiplier: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["poly", "step"] = "poly"
    power: float = 0.9
    step_every: int = 2000
    warmup_steps: int = 0
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    mirror: bool = True
    colour: float = 0.0
    loss: Literal["full", "stride"] = "full"
    ema: float = 0.0
    dropout: float = 0.0
    frozen_layers: int = 0
    clip_norm: float = 0.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_norm: Literal["frozen", "sync"] = "frozen"
    validate_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "batch_size": self.batch_size, "crop": self.crop, "validate_every": self.validate_every}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} {value}: at least 1 is accepted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: 0 up to below 1 is accepted")
        if self.clip_norm < 0:
            raise ValueError(f"clip_norm {self.clip_norm}: 0 (off) and above are accepted")
        if self.precision not in ("float32", "bfloat16", "float16") or self.batch_norm not in ("frozen", "sync"):
            raise ValueError(
                f"precision {self.precision}, batch_norm {self.batch_norm}: float32, bfloat16 or float16, and frozen or sync, "
                "are accepted"
            )
        if self.learning_rate <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate {self.learning_rate}, ema {self.ema}: above 0, and 0 up to below 1, are accepted")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def pets() -> TrainingConfig:
    """The bundled pets model, from ImageNet weights: trained at stride 16 (as DeepLab v3 is), saved at stride 8."""
    return TrainingConfig(
        preset="pets",
        architecture="mobilenet-v2-aspp",
        options={"output_stride": 16},
        saved_options={"output_stride": 8},
        steps=1500,
        batch_size=8,
        crop=417,  # 16 * 26 + 1: on the lattice, and nearly the whole photo, so that bodies are learnt, not only faces
        optimizer="adamw",
        learning_rate=1.5e-4,
        # The head sums 46,080 inputs that are all positive: Adam's equal steps must be small there.
        head_multiplier=0.25,
        weight_decay=0.02,
        warmup_steps=50,
        colour=0.3,
        ema=0.995,
        frozen_layers=4,  # edges and colours of 270 photos teach nothing new; a step takes half as long
        validate_every=150,
    )


def finetune() -> TrainingConfig:
    """A practical start for 100 to 10,000 labelled images on one machine: the bundled backbone, your classes."""
    return TrainingConfig(
        preset="finetune",
        architecture="mobilenet-v2-aspp",
        steps=2000,
        batch_size=8,
        crop=321,
        learning_rate=0.0005,
        head_multiplier=4.0,
        warmup_steps=50,
        colour=0.3,
        ema=0.998,
        validate_every=200,
    )


def resnet101_v2() -> TrainingConfig:
    """DeepLab v2 on ResNet-101 as re-implementations train it: 20k iterations of 10 crops of 321, poly, 2.5e-4."""
    return TrainingConfig(preset="resnet101-v2", architecture="resnet101-aspp", loss="stride")


PRESETS: dict[str, Callable[[], TrainingConfig]] = {
    "finetune": finetune,
    "resnet101-v2": resnet101_v2,
    "pets": pets,
}
