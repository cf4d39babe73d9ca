"""Options that several commands share, one class per subject.

Commands combine the classes by inheritance. The fields of the last base come first: this is their order in help and forms, and
the validator of a field sees only the fields before it.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from deeplab.crf import PARAMETER_SETS, Refinement
from deeplab.images.decoding import LEAST_STRIDE
from deeplab.scoring.settings import SCALES, Fusion, Precision, Quality, Scoring
from deeplab.segmentation.options import MaskOptions

if TYPE_CHECKING:
    from deeplab.models.checkpoint import Model

CRFName = Literal["deeplab-v1", "deeplab-v2", "kazuto", "isht7", "deconvnet", "card"]
CRFMode = Literal["fast", "exact", "half"]
CRF_MODES = "fast (leaves out absent classes), exact (pydensecrf's model) or half (fast, on the photo at half size)"
Device = Annotated[Literal["auto", "cpu", "cuda"], Field(description="Device to compute on")]
Address = Annotated[
    str | None,
    Field(
        description="Ray cluster (host:port or auto; flows that segment or train also take http://host:8265); none starts Ray here"
    ),
]
StartTimeout = Annotated[float, Field(gt=0, description="Seconds to wait for a cluster without free resources")]
SkipBroken = Annotated[bool, Field(description="Leave broken pairs out instead of refusing the data set")]
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Spelling:
    """How an option appears on the command line besides its name: a short form ("-m"), or the name of an argument."""

    short: str = ""
    argument: str = ""


class Options(BaseModel):
    """Options of any kind."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def of_kind(self, kind: type[T], base: T | None = None) -> T:
        """The dataclass `kind` with the options that its fields name; where an option is None, the value of `base` remains."""
        assert dataclasses.is_dataclass(kind)
        names = [field.name for field in dataclasses.fields(kind) if field.name in type(self).model_fields]
        values: dict[str, Any] = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return kind(**values) if base is None else dataclasses.replace(base, **values)  # type: ignore[type-var]


def short(place: str) -> str:
    """The last part of a path or URI, as a short name."""
    return place.rstrip("/").rsplit("/", 1)[-1] or place


class ScoringOptions(Options):
    """How a model is applied to an image; deeplab.segmentation.options.MaskOptions does what they say."""

    quality: Quality = Field(
        default="standard",
        description="draft (about twice as fast), standard or best (two to four times as long); sets what is not set: "
        "output_stride, scales, fusion, flip and crf_mode",
    )
    output_stride: int | None = Field(
        default=None, ge=1, le=64, description="Pixels of the input for each score: 8 or 16; default by quality, or the model's own"
    )
    scales: tuple[Annotated[float, Field(ge=SCALES[0], le=SCALES[1])], ...] | None = Field(
        default=None, min_length=1, max_length=8, description="Scales of the input; 0.5,0.75,1 is DeepLab v2's MSC; default 1"
    )
    flip: bool | None = Field(default=None, description="Also score the mirror image and average")
    fusion: Fusion | None = Field(default=None, description="How scales are fused: max (DeepLab v2, the default) or mean")
    precision: Precision = Field(
        default="auto",
        description="Number format of scoring; int8 is for MobileNetV2, ResNet and VGG-16 models on CPUs (deeplab quantize)",
    )
    tile: int = Field(default=1025, ge=193, le=8193, description="Images above TILE x TILE pixels are scored in overlapping tiles")
    overlap: int = Field(default=128, ge=0, le=1024, description="Pixels that tiles share")

    @field_validator("overlap")
    @classmethod
    def _less_than_a_tile(cls, overlap: int, info: ValidationInfo) -> int:
        tile = info.data.get("tile")  # absent if it is itself out of bounds, which has an error of its own
        if tile is not None and overlap > tile - LEAST_STRIDE:
            raise ValueError(f"at most {tile - LEAST_STRIDE} is accepted with a tile of {tile}")
        return overlap

    def prepared(self, model: Model) -> Model:
        """As `MaskOptions.prepared`."""
        return self.of_kind(MaskOptions).prepared(model)

    def scoring(self, model: Model) -> Scoring:
        """How the model is applied."""
        return self.of_kind(MaskOptions).scoring(model)

    def scored(self, model: Model, precision: str | None = None) -> str:
        """As `MaskOptions.scored`."""
        return self.of_kind(MaskOptions).scored(model, precision)


class CRFOptions(ScoringOptions):
    """Whether and how masks are refined, by this package's engine."""

    crf: bool = Field(default=True, description="Refine masks with the dense CRF")
    crf_params: CRFName = Field(
        default="kazuto",
        description=f"CRF parameters: {', '.join(PARAMETER_SETS)}, or card: those that tune-crf wrote into the card",
    )
    crf_mode: CRFMode | None = Field(default=None, description=f"{CRF_MODES}; default by quality")

    def refinement(self, model: Model, device: str = "auto") -> Refinement | None:
        """As `MaskOptions.refinement`."""
        return self.of_kind(MaskOptions).refinement(model, device)


class RefinementOptions(CRFOptions):
    """Whether and how masks are refined, and on what."""

    crf_backend: Literal["native", "torch", "pydensecrf"] = Field(
        default="native",
        description="Implementation of the CRF: native (on the cores), torch (on the GPUs, always exact) or pydensecrf",
    )


class DataSetOptions(Options):
    """Labelled images."""

    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images (docs/training.md)")
    layout: str = Field(
        default="auto",
        pattern=r"^[\w-]+$",
        description="Layout of the data set: auto, plain, voc2012, cityscapes, ade20k, pascal-context, person-part or coco-stuff",
    )


class SplitOptions(DataSetOptions):
    """One split of a data set."""

    split: str = Field(default="val", pattern=r"^[\w.-]+$", description="Split to work on")


class ClusterOptions(Options):
    """Where the work runs."""

    device: Device = "auto"
    workers: int = Field(
        default=1,
        ge=1,
        le=4096,
        validate_default=True,
        description="Processes that share the work, through Ray; 1 without an address is this process",
    )
    address: Address = None
    start_timeout: StartTimeout = 600

    @property
    def here(self) -> bool:
        """Whether this process does all the work, without Ray."""
        return self.workers == 1 and self.address is None


class ModelOptions(Options):
    """Which model."""

    model: str = Field(description="Bundled model (see `deeplab models`), model folder or REGISTRY@ALIAS")
