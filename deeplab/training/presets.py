"""Training presets: functions that return a complete configuration, with the source of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides what a training computes; the model card holds all of it. ValueError for values out of range."""

    preset: str
    """Name of the preset."""
    architecture: str
    """Name in deeplab.zoo."""
    options: dict[str, Any] = field(default_factory=dict)
    """The architecture's options."""
    saved_options: dict[str, Any] = field(default_factory=dict)
    """Options that the saved model has instead, unlike training and validation: weights trained at stride 16 also run at 8."""
    steps: int = 20_000
    """Optimizer steps."""
    passes: float = 0.0
    """If not 0, the training set decides `steps` (deeplab.training.adaptation): enough to see each labelled pixel so often."""
    batch_size: int = 10
    """Crops of one optimizer step, over all workers."""
    crop: int = 321
    """Side of a crop, in pixels."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """The papers' SGD with momentum; or AdamW, whose steps do not depend on the scale of a weight. A backbone with frozen batch
    norm needs that: with SGD it learns only slowly."""
    learning_rate: float = 2.5e-4
    """Of the backbone, at the first step after the warm-up."""
    known_classes_rate: float = 1.0
    """Factor on `learning_rate` if the weights to start from score more than half of the classes already: such a start is near
    its goal, and large steps lead away from it."""
    head_multiplier: float = 10.0
    """The head's learning rate as a multiple of the backbone's; biases have twice that of weights, as in the released prototxts."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    """Of all weights; biases have none."""
    schedule: Literal["poly", "step"] = "poly"
    """How the learning rate falls: (1 - step / steps) ** power, or to a tenth every `step_every` steps."""
    power: float = 0.9
    """Of the poly schedule."""
    step_every: int = 2000
    """Of the step schedule, in steps."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """Factors that images are resized by at random before they are cropped (deeplab.data.augmentation)."""
    mirror: bool = True
    """Mirror half of the crops."""
    colour: float = 0.0
    """Brightness, contrast and saturation are each multiplied by a random factor in 1 - colour .. 1 + colour; 0 is off."""
    class_crops: float = 0.0
    """Share of the crops that show a class drawn evenly from those of their image (deeplab.data.augmentation)."""
    class_balance: float = 0.0
    """The loss of a pixel is weighted by (1 / its class's share of the labelled pixels) to this power: 0 is the papers' loss,
    1 gives every class the same total weight."""
    class_weights: tuple[float, ...] = ()
    """Factors by class id that follow from `class_balance` and the training set; none if it is 0."""
    loss: Literal["full", "stride"] = "full"
    """Labels at full resolution, or every stride-th of them (deeplab.training.losses)."""
    objective: Literal["single", "official", "kazuto"] = "single"
    """One loss on the scores, or one on each of `loss_scales` and on their fusion (deeplab.training.objective). Attention to Scale
    always has the latter."""
    loss_scales: tuple[float, ...] = (1.0, 0.75, 0.5)
    """Factors of the input that have a loss of their own if `objective` is not single."""
    normalize: bool = True
    """The loss is the mean over labelled pixels; else their sum, as in FCN."""
    sampling: Literal["image", "objects", "proposals"] = "image"
    """Crops of the image, or DeconvNet's of objects or proposals (deeplab.data.object_crops), which ignore `scales` and
    `colour`."""
    ema: float = 0.0
    """Decay of the running mean of the weights; that mean is validated and saved. 0 is off."""
    dropout: float = 0.0
    """Share of the backbone's output channels that a training step drops."""
    frozen_layers: int = 0
    """How many of the backbone's first layers (`backbone.layers()`) stay as loaded. This saves the most expensive gradients."""
    clip_norm: float = 0.0
    """A longer gradient is scaled down to this Euclidean length; 0 is off."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the forward pass; weights stay float32."""
    batch_norm: Literal["frozen", "affine", "sync"] = "frozen"
    """Frozen as loaded, as in the papers; only its statistics frozen, scale and shift learnt; or all of it learnt, with
    statistics over all workers' crops of one pass."""
    validate_every: int = 500
    """Steps between validations."""
    default_init: str = ""
    """Weights that a training starts from if it names none: a bundled model, or none."""
    seed: int = 0
    """Of the head's initial weights, the order of images and their augmentation."""

    def __post_init__(self) -> None:
        positive = {"steps": self.steps, "batch_size": self.batch_size, "crop": self.crop, "validate_every": self.validate_every}
        for name, value in positive.items():
            if value < 1:
                raise ValueError(f"{name} {value}: at least 1 is accepted")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout}: 0 up to below 1 is accepted")
        if not 0 <= self.class_crops <= 1:
            raise ValueError(f"class_crops {self.class_crops}: 0 to 1 are accepted")
        if self.clip_norm < 0:
            raise ValueError(f"clip_norm {self.clip_norm}: 0 (off) and above are accepted")
        if self.precision not in ("float32", "bfloat16", "float16") or self.batch_norm not in (
            "frozen",
            "affine",
            "sync",
        ):
            raise ValueError(
                f"precision {self.precision}, batch_norm {self.batch_norm}: float32, bfloat16 or float16, and frozen, "
                "affine or sync, are accepted"
            )
        if self.learning_rate <= 0 or not 0 <= self.ema < 1:
            raise ValueError(f"learning_rate {self.learning_rate}, ema {self.ema}: above 0, and 0 up to below 1, are accepted")

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def finetune() -> TrainingConfig:
    """For anyone's classes, 50 to 10,000 labelled images, one machine: starts from `voc`; docs/training.md has its figures."""
    return TrainingConfig(
        preset="finetune",
        architecture="mobilenet-v2-image-pooling",
        options={"output_stride": 16},  # as the weights were trained, at a quarter of the cost of 8
        saved_options={"output_stride": 8, "trained_stride": 16},
        steps=1500,
        passes=30.0,
        batch_size=8,
        crop=321,
        optimizer="adamw",
        learning_rate=1e-3,
        known_classes_rate=0.2,
        head_multiplier=1.0,
        weight_decay=0.02,
        warmup_steps=20,
        colour=0.3,
        class_crops=0.5,
        class_balance=0.5,
        dropout=0.2,
        ema=0.995,
        frozen_layers=4,  # earlier training taught them edges and colours, and their gradients cost the most
        precision="bfloat16",  # twice as fast as float32 where the processor multiplies in it
        batch_norm="affine",
        validate_every=150,
        default_init="voc",
    )


def finetune_resnet50() -> TrainingConfig:
    """`finetune`'s recipe on ResNet-50, for a GPU or for patience: --init Caffe's ImageNet weights. Its mIoU was not measured."""
    return replace(
        finetune(),
        preset="finetune-resnet50",
        architecture="resnet50-aspp",
        options={"output_stride": 16, "eps": 1e-3},
        learning_rate=1e-4,
        head_multiplier=0.2,  # the head sums 2048 channels x 9 taps x 4 branches, all positive: Adam's equal steps must be small
        batch_norm="frozen",
        frozen_layers=0,
        default_init="",
    )


def pets() -> TrainingConfig:
    """The bundled pets model, from ImageNet weights (docs/models.md): `finetune` as it was before it started from `voc`."""
    return TrainingConfig(
        preset="pets", architecture="mobilenet-v2-aspp", options={"output_stride": 16},
        saved_options={"output_stride": 8, "trained_stride": 16},
        # The head sums 1280 channels x 9 taps x 4 branches, all positive: Adam's equal steps must be small.
        steps=1500, batch_size=8, crop=321, optimizer="adamw", learning_rate=1.5e-4, head_multiplier=0.25, weight_decay=0.02,
        warmup_steps=50, colour=0.3, dropout=0.2, ema=0.995, frozen_layers=4, precision="bfloat16", validate_every=150,
        default_init="pets",
    )  # fmt: skip


def aerial() -> TrainingConfig:
    """Five land classes on satellite images cut into tiles (docs/models.md): 54 images of 6 places, from ImageNet weights."""
    return TrainingConfig(
        preset="aerial", architecture="mobilenet-v2-aspp", options={"output_stride": 16},
        saved_options={"output_stride": 8, "trained_stride": 16},
        steps=300, batch_size=8, crop=321, optimizer="adamw", learning_rate=3e-4, head_multiplier=0.25, weight_decay=0.02,
        warmup_steps=20, colour=0.3, ema=0.98, frozen_layers=4, precision="bfloat16", validate_every=150, default_init="pets",
    )  # fmt: skip


def resnet101_v2() -> TrainingConfig:
    """DeepLab v2 on ResNet-101 as re-implementations train it: 20k iterations of 10 crops of 321, poly, 2.5e-4."""
    return TrainingConfig(preset="resnet101-v2", architecture="resnet101-aspp", loss="stride")


def _vgg_v1(architecture: str, **changes: Any) -> TrainingConfig:
    """The released v1 solver: 6k iterations, 1e-3 (fc8 1e-2) falling tenfold every 2k, labels shrunk by 8, mirror only.

    Batch 20 is the paper's; the released file says 30.
    """
    config = TrainingConfig(
        preset=f"{architecture}-v1", architecture=architecture, steps=6000, batch_size=20, learning_rate=1e-3,
        schedule="step", step_every=2000, scales=(1.0,), loss="stride",
    )  # fmt: skip
    return replace(config, **changes)


def vgg16_7x7_v1() -> TrainingConfig:
    """DeepLab-CRF-7x7 (arXiv 1412.7062, Table 2): val 67.64 with CRF, 64.38 before it."""
    return _vgg_v1("vgg16-7x7")


def vgg16_4x4_v1() -> TrainingConfig:
    """DeepLab-CRF (arXiv 1412.7062, Table 2): val 63.74 with CRF, 59.80 before it."""
    return _vgg_v1("vgg16-4x4")


def vgg16_4x4_hole8_v1() -> TrainingConfig:
    """DeepLab-CRF-4x4 (arXiv 1412.7062, Table 2): val 67.14 with CRF, 63.41 before it."""
    return _vgg_v1("vgg16-4x4-hole8")


def vgg16_largefov_v1() -> TrainingConfig:
    """DeepLab-CRF-LargeFOV (arXiv 1412.7062, Table 2): val 67.64 with CRF, 62.25 before it."""
    return _vgg_v1("vgg16-largefov")


def vgg16_largefov_features_v1() -> TrainingConfig:
    """DeepLab-MSc-CRF-LargeFOV (arXiv 1412.7062, Table 1): val 68.70, 64.21 before the CRF; --init a LargeFOV model.

    The backbone's 15 convolutions stay as loaded: "we only learn the newly added weights".
    """
    return _vgg_v1("vgg16-largefov-features", frozen_layers=15)


def _vgg_v2(preset: str, architecture: str, **changes: Any) -> TrainingConfig:
    """DeepLab v2 on VGG-16: poly 0.9 from 1e-3 (fc8 1e-2), 20k iterations of 10 crops of 321, labels shrunk by 8."""
    config = TrainingConfig(preset=preset, architecture=architecture, learning_rate=1e-3, scales=(1.0,), loss="stride")
    return replace(config, **changes)


def vgg16_v2_step_30x6k() -> TrainingConfig:
    """arXiv 1606.00915, Table 2, row 1: step, batch 30, 6k: val 62.25 before the CRF."""
    return _vgg_v2("vgg16-v2-step-30x6k", "vgg16-v2-largefov", schedule="step", batch_size=30, steps=6000)


def vgg16_v2_poly_30x6k() -> TrainingConfig:
    """arXiv 1606.00915, Table 2, row 2: poly, batch 30, 6k: val 63.42 before the CRF."""
    return _vgg_v2("vgg16-v2-poly-30x6k", "vgg16-v2-largefov", batch_size=30, steps=6000)


def vgg16_v2_poly_30x10k() -> TrainingConfig:
    """arXiv 1606.00915, Table 2, row 3: poly, batch 30, 10k: val 64.90 before the CRF."""
    return _vgg_v2("vgg16-v2-poly-30x10k", "vgg16-v2-largefov", batch_size=30, steps=10_000)


def vgg16_v2_poly_10x10k() -> TrainingConfig:
    """arXiv 1606.00915, Table 2, row 4: poly, batch 10, 10k: val 64.71 before the CRF."""
    return _vgg_v2("vgg16-v2-poly-10x10k", "vgg16-v2-largefov", steps=10_000)


def vgg16_v2_largefov() -> TrainingConfig:
    """arXiv 1606.00915, Table 2, row 5 and Table 3: poly, batch 10, 20k: val 65.76 (65.88 in Table 2), 69.84 with CRF."""
    return _vgg_v2("vgg16-v2-largefov", "vgg16-v2-largefov")


def vgg16_aspp_s() -> TrainingConfig:
    """arXiv 1606.00915, Table 3: ASPP-S: val 66.98, with CRF 69.73."""
    return _vgg_v2("vgg16-aspp-s", "vgg16-aspp-s")


def vgg16_aspp_l() -> TrainingConfig:
    """arXiv 1606.00915, Table 3: ASPP-L: val 68.96, with CRF 71.57."""
    return _vgg_v2("vgg16-aspp-l", "vgg16-aspp-l")


def resnet101_v2_plain() -> TrainingConfig:
    """arXiv 1606.00915, Table 4, row 1: one scale, a 1x1 head, no scale augmentation: val 68.72."""
    return TrainingConfig(preset="resnet101-v2-plain", architecture="resnet101-plain", scales=(1.0,), loss="stride")


def resnet101_v2_largefov() -> TrainingConfig:
    """arXiv 1606.00915, Table 4: MSC, COCO weights as --init, scale augmentation, LargeFOV: val 75.54."""
    return TrainingConfig(preset="resnet101-v2-largefov", architecture="resnet101-largefov", loss="stride", objective="official")


def resnet101_v2_msc() -> TrainingConfig:
    """arXiv 1606.00915, Table 4: MSC, COCO weights as --init, scale augmentation, ASPP: val 76.35, with CRF 77.69."""
    return TrainingConfig(preset="resnet101-v2-msc", architecture="resnet101-aspp", loss="stride", objective="official")


def resnet50_v2_msc() -> TrainingConfig:
    """resnet101-v2-msc's schedule on ResNet-50; --init takes Caffe's ImageNet weights. The paper has no figure."""
    return TrainingConfig(
        preset="resnet50-v2-msc", architecture="resnet50-aspp", options={"eps": 1e-3}, loss="stride", objective="official"
    )


def resnet50_v3() -> TrainingConfig:
    """DeepLab v3's crops and schedule (arXiv 1706.05587, section 4: 513, poly from 0.007, batch 16, 30k, stride 16 then 8).

    Batch norm stays as loaded, although the paper learns it first.
    """
    return TrainingConfig(
        preset="resnet50-v3", architecture="resnet50-aspp-v3", options={"output_stride": 16},
        saved_options={"output_stride": 8, "trained_stride": 16}, steps=30_000, batch_size=16, crop=513, learning_rate=0.007,
        head_multiplier=1.0, weight_decay=1e-4, scales=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0),
    )  # fmt: skip


def _fcn(architecture: str, learning_rate: float, steps: int = 100_000) -> TrainingConfig:
    """FCN's solvers: whole images one by one, a summed loss, momentum 0.99, a constant learning rate."""
    return TrainingConfig(
        preset=architecture, architecture=architecture, steps=steps, batch_size=1, crop=500, learning_rate=learning_rate,
        head_multiplier=1.0, momentum=0.99, schedule="step", step_every=steps, scales=(1.0,), mirror=False, normalize=False,
        validate_every=4000,
    )  # fmt: skip


def fcn32s() -> TrainingConfig:
    """voc-fcn32s, from VGG-16: 63.6 on seg11valid."""
    return _fcn("fcn32s", 1e-10)


def fcn16s() -> TrainingConfig:
    """voc-fcn16s, --init a trained fcn32s: 65.0 on seg11valid."""
    return _fcn("fcn16s", 1e-12)


def fcn8s() -> TrainingConfig:
    """voc-fcn8s, --init a trained fcn16s: 65.5 on seg11valid; the paper's 62.2 on VOC 2012 test."""
    return _fcn("fcn8s", 1e-14)


def fcn8s_at_once() -> TrainingConfig:
    """voc-fcn8s-atonce, from VGG-16 in one go of 300k."""
    return _fcn("fcn8s-at-once", 1e-10, 300_000)


def _deconvnet(stage: int, steps: int, every: int, sampling: Literal["objects", "proposals"]) -> TrainingConfig:
    return TrainingConfig(
        preset=f"deconvnet-stage{stage}", architecture="deconvnet", steps=steps, batch_size=64, crop=224, learning_rate=0.01,
        head_multiplier=1.0, schedule="step", step_every=every, scales=(1.0,), validate_every=1000, sampling=sampling,
    )  # fmt: skip


def deconvnet_stage1() -> TrainingConfig:
    """DeconvNet's first solver (0.01 falling every 9k, 20k x 64), from VGG-16: crops of single objects."""
    return _deconvnet(1, 20_000, 9000, "objects")


def deconvnet_stage2() -> TrainingConfig:
    """Its second (0.01 falling every 10k, 40k x 64), --init stage 1: boxes that overlap objects; test 69.6."""
    return _deconvnet(2, 40_000, 10_000, "proposals")


def vgg16_attention() -> TrainingConfig:
    """Attention to Scale (arXiv 1511.03339): batch 30, 1e-3 falling tenfold after 2k; test 75.7 with COCO and CRF."""
    return _vgg_v2("vgg16-attention", "vgg16-attention", batch_size=30, steps=6000, schedule="step")


PRESETS: dict[str, Callable[[], TrainingConfig]] = {
    "finetune": finetune,
    "finetune-resnet50": finetune_resnet50,
    "resnet101-v2": resnet101_v2,
    "pets": pets,
    "aerial": aerial,
}
_PAPERS = (
    vgg16_7x7_v1, vgg16_4x4_v1, vgg16_4x4_hole8_v1, vgg16_largefov_v1, vgg16_largefov_features_v1,
    vgg16_v2_step_30x6k, vgg16_v2_poly_30x6k, vgg16_v2_poly_30x10k, vgg16_v2_poly_10x10k, vgg16_v2_largefov,
    vgg16_aspp_s, vgg16_aspp_l, resnet101_v2_plain, resnet101_v2_largefov, resnet101_v2_msc, resnet50_v2_msc, resnet50_v3,
    fcn32s, fcn16s, fcn8s, fcn8s_at_once, deconvnet_stage1, deconvnet_stage2, vgg16_attention,
)  # fmt: skip
PRESETS |= {preset().preset: preset for preset in _PAPERS}
