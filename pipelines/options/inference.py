"""Options of commands that use a model: segment, evaluate, tune-crf, benchmark."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from deeplab.images.decoding import MAX_PIXELS
from pipelines.options.shared import (
    CRF_MODES,
    Address,
    ClusterOptions,
    CRFMode,
    CRFOptions,
    Device,
    ModelOptions,
    Options,
    RefinementOptions,
    ScoringOptions,
    SkipBroken,
    Spelling,
    SplitOptions,
    StartTimeout,
    short,
)

DEFAULT_MODEL = "voc"  # the bundled model that knows most: PASCAL VOC's 20 kinds of persons, animals, vehicles and things


class Places(Options):
    """The archive, the model and the results table."""

    archive: str = Field(description="Folder, glob, list file (.txt), inventory (.parquet) or s3:// prefix of images")
    results: str = Field(description="Folder or s3:// prefix of the results table; created when missing")
    model: Annotated[str, Spelling("-m")] = Field(
        default=DEFAULT_MODEL, description="Bundled model (see `deeplab models`), model folder or REGISTRY@ALIAS"
    )


class SegmentOptions(RefinementOptions, Places):
    """One run of `deeplab segment`."""

    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=100_000_000_000,
        description="Images with more pixels become error rows; raise it for large images",
    )
    commit_every: float = Field(default=60, gt=0, le=86400, description="Seconds between commits: the work that a crash can lose")
    limit: int | None = Field(default=None, ge=1, description="Take only the first LIMIT images of the archive")
    include: tuple[str, ...] = Field(default=(), description="Pattern of names to take; '*' takes every file")
    exclude: tuple[str, ...] = Field(default=(), description="Pattern of names to leave out")
    max_error_rate: float = Field(
        default=0.05, ge=0, le=1, description="Above this share of error rows, fail (exit code 3) after committing"
    )
    retry_errors: bool = Field(default=False, description="Segment images with an error row again")
    redo: bool = Field(default=False, description="Segment images again whose mask was made with other settings than these")
    address: Address = None
    start_timeout: StartTimeout = 600

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.archive)} with {short(self.model)}"


class EvaluateOptions(ClusterOptions, RefinementOptions, SplitOptions, ModelOptions):
    """One model, or the masks of a results table, against the labels of one split."""

    model: str = Field(description="Bundled model, model folder, REGISTRY@ALIAS, or a results table")
    crf: bool = Field(default=False, description="Refine with the dense CRF before counting")
    skip_broken: SkipBroken = False
    rows_of: str | None = Field(default=None, description="With a results table: the model whose rows count; default the latest")
    trimap: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), max_length=50, description="Also count within these distances (pixels) of void boundaries, e.g. 2,5,10"
    )

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.model)} on {self.split} of {short(self.dataset)}"


class TuneOptions(ClusterOptions, ScoringOptions, SplitOptions, ModelOptions):
    """A search for the best CRF parameters of one model."""

    model: str = Field(description="Model folder or s3:// prefix, whose card gets the winner; with write off, any model")
    crf_mode: CRFMode = Field(default="fast", description=CRF_MODES)
    images: int = Field(default=100, ge=1, le=5000, description="Images to search on, evenly from the split; the papers use 100")
    grid: Literal["deeplab-v2", "deeplab-v1"] = Field(
        default="deeplab-v2", description="Coarse grid: deeplab-v2 has 128 candidates, deeplab-v1 288"
    )
    rounds: int = Field(default=2, ge=0, le=6, description="Finer rounds around the best, each at half the step")
    write: bool = Field(default=True, description="Write the winner into the model's card")


class QuantizeOptions(ModelOptions):
    """Ranges for int8: the model that gets them, and the photos that they come from."""

    photos: str = Field(description="Folder of photos that resemble those to segment")
    out: Annotated[str | None, Spelling("-o")] = Field(
        default=None, description="Model folder or s3:// prefix to write; default MODEL itself"
    )
    count: Annotated[int, Spelling("-n")] = Field(
        default=48, ge=2, le=1000, description="Photos to take, evenly; 12 give the ranges, the others are held back to compare"
    )
    least: float = Field(
        default=0.985, ge=0, le=1, description="Least share of labels equal to float32's; below it nothing is written"
    )
    dataset: str | None = Field(default=None, description="Labelled images to count mIoU on, in float32 and int8, for the card")
    split: str = Field(default="val", pattern=r"^[\w.-]+$", description="Split of the data set")
    layout: str = Field(default="auto", pattern=r"^[\w-]+$", description="Layout of the data set, as for evaluate")


class BenchmarkOptions(CRFOptions):
    """The settings of a measurement, and the archive that the estimate is for."""

    model: Annotated[str, Spelling(argument="MODEL")] = Field(
        default=DEFAULT_MODEL, description="Bundled model, model folder, REGISTRY@ALIAS, or an architecture (random weights)"
    )
    device: Device = "auto"
    photos: str | None = Field(default=None, description="Folder of photos like those of the archive; default synthetic ones")
    count: Annotated[int, Spelling("-n")] = Field(default=8, ge=1, le=1000, description="Photos to measure with")
    size: str = Field(default="375x500", description="HEIGHTxWIDTH of synthetic photos, in pixels")
    rounds: int = Field(default=3, ge=1, le=100, description="Measurements of each photo; the median counts")
    images: int = Field(default=1_000_000, ge=1, description="Images of the archive that the estimate is for")
    cores: int | None = Field(default=None, ge=1, description="Cores of the estimate; default this machine's")
    gpus: int | None = Field(default=None, ge=0, description="GPUs of the estimate; default this machine's, on cuda")
    hourly_price: float | None = Field(default=None, ge=0, description="Price of these cores and GPUs per hour, for a cost line")

    @field_validator("size")
    @classmethod
    def _two_sides(cls, size: str) -> str:
        sides = size.split("x")
        if len(sides) != 2 or not all(side.isdecimal() and 1 <= int(side) <= 10_000 for side in sides):
            raise ValueError("HEIGHTxWIDTH such as 375x500, up to 10000, is accepted")
        return size

    @property
    def side(self) -> tuple[int, int]:
        """Height and width of synthetic photos."""
        height, width = self.size.split("x")
        return int(height), int(width)
