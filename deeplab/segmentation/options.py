"""How masks are made: what a person may set, and what that means for a model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, get_args

from deeplab.crf import PARAMETER_SETS, Refinement
from deeplab.crf.engine import Backend, Mode
from deeplab.images.decoding import MAX_PIXELS
from deeplab.scoring.quality import QUALITIES
from deeplab.scoring.settings import Fusion, Precision, Quality, Scoring

if TYPE_CHECKING:
    from deeplab.models.checkpoint import Model


@dataclass(frozen=True)
class MaskOptions:
    """How masks are made, by options with the names and defaults of `deeplab segment`. None: as `quality` says.

    ValueError for values out of range.
    """

    quality: Quality = "standard"
    """"draft" (about twice as fast), "standard" or "best" (two to four times as long)."""
    output_stride: int | None = None
    """Pixels of the input for each score: 8 or 16; without a quality that says otherwise the model's own."""
    scales: tuple[float, ...] | None = None
    """Scales of the input; (0.5, 0.75, 1) is DeepLab v2's MSC."""
    flip: bool | None = None
    """Also score the mirror image, and average."""
    fusion: Fusion | None = None
    """How the scores of several scales become one: "max" or "mean"."""
    precision: Precision = "auto"
    """Number format of scoring; "auto" is the fastest that the device has instructions for."""
    tile: int = 1025
    """Pixels: an image of more than `tile` x `tile` is scored in tiles of that side."""
    overlap: int = 128
    """Pixels that neighbouring tiles share."""
    crf: bool = True
    """Refine masks with the dense CRF."""
    crf_params: str = "kazuto"
    """One of `deeplab.crf.PARAMETER_SETS`, or "card": those tuned for the model."""
    crf_mode: Mode | None = None
    """Of the CRF: "fast", "half" or "exact"."""
    crf_backend: Backend = "native"
    """What computes the CRF: "native" (on the cores), "torch" (on the GPU, always exact) or "pydensecrf"."""
    max_pixels: int = MAX_PIXELS
    """Images with more pixels are refused."""

    def __post_init__(self) -> None:
        kinds: dict[str, tuple[type, ...]] = {
            "output_stride": (int, type(None)),
            "flip": (bool, type(None)),
            "crf": (bool,),
            "tile": (int,),
            "overlap": (int,),
            "max_pixels": (int,),
            "scales": (list, tuple, type(None)),
        }
        for name, types in kinds.items():
            if not isinstance(value := getattr(self, name), types) or (bool not in types and isinstance(value, bool)):
                known = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
                raise TypeError(f"{name} {value!r}: {known} is accepted")
        if self.scales is not None:
            object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))
        accepted: dict[str, tuple[object, ...]] = {
            "quality": tuple(QUALITIES),
            "crf_params": (*PARAMETER_SETS, "card"),
            "crf_mode": (None, *get_args(Mode)),
            "crf_backend": get_args(Backend),
        }
        for name, values in accepted.items():
            if getattr(self, name) not in values:
                known = ", ".join(repr(value) for value in values if value is not None)
                raise ValueError(f"{name} {getattr(self, name)!r}: {known} are accepted")
        if self.max_pixels < 1:
            raise ValueError(f"max_pixels {self.max_pixels}: 1 or more is accepted")
        self._scoring(Scoring())  # checks the rest

    @classmethod
    def named(cls, **options: object) -> MaskOptions:
        """The options with these values. TypeError for a name that is not an option."""
        names = [field.name for field in fields(cls)]
        if unknown := sorted(set(options) - set(names)):
            raise TypeError(f"no option {', '.join(unknown)}; the options are {', '.join(names)}")
        return cls(**options)  # type: ignore[arg-type]

    @property
    def wanted_stride(self) -> int | None:
        """The output stride that is asked for, by `output_stride` or by the quality; None is the model's own."""
        return self.output_stride if self.output_stride is not None else QUALITIES[self.quality].output_stride

    def prepared(self, model: Model) -> Model:
        """The model at the output stride that is asked for. ModelError if `output_stride` is one that it cannot have."""
        from deeplab.models.checkpoint import ModelError

        if self.wanted_stride is None:
            return model
        try:
            return model.at_stride(self.wanted_stride)
        except ModelError:
            if self.output_stride is not None:
                raise
            return model  # a quality asks for what the network can do

    def scoring(self, model: Model) -> Scoring:
        """How the model is applied."""
        return self._scoring(QUALITIES[self.quality].scoring_of(model.card.get("training", {})))

    def _scoring(self, base: Scoring) -> Scoring:
        return Scoring(
            scales=base.scales if self.scales is None else self.scales,
            flip=base.flip if self.flip is None else self.flip,
            fusion=base.fusion if self.fusion is None else self.fusion,
            precision=self.precision,
            tile=self.tile,
            overlap=self.overlap,
        )

    def scored(self, model: Model, precision: str | None = None) -> str:
        """How the prepared model is applied, in one line, the table's `scored`; `precision`: what "auto" became."""
        return f"{self.quality} {self.scoring(model).short(model.output_stride or model.stride, precision)}"

    def refinement(self, model: Model, device: str = "auto") -> Refinement | None:
        """The CRF for a model; None without refinement. `device`: of the torch backend.

        ModelError if the model's card should have parameters and has none.
        """
        if not self.crf:
            return None
        # Deterministic: an image that is done again on a GPU has the same mask.
        mode = self.crf_mode or QUALITIES[self.quality].crf_mode
        return Refinement(model.crf(self.crf_params), mode, self.crf_backend, device, deterministic=True)
