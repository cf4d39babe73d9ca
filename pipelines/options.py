"""What a person sets for a segmentation run; bounds live in the schema, so that every face of it refuses the same."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from deeplab.images import MAX_PIXELS
from deeplab.names import model_name

CRFName = Literal["deeplab-v1", "deeplab-v2", "kazuto", "isht7", "deconvnet", "card"]


def short(place: str) -> str:
    """The last part of a path or URI: how people call the place."""
    return place.rstrip("/").rsplit("/", 1)[-1] or place


class SegmentOptions(BaseModel):
    """One run of `deeplab segment`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    archive: str = Field(description="Folder, glob, list file (.txt), inventory (.parquet) or s3:// prefix of images")
    results: str = Field(description="Folder or s3:// prefix of the results table; created when missing")
    model: str = Field(default="pets", description="Bundled model, model folder or REGISTRY@ALIAS")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        default=(1.0,), min_length=1, max_length=8, description="Scales of the input, fused per position"
    )
    flip: bool = Field(default=False, description="Also score the mirror image and average")
    fusion: Literal["max", "mean"] = Field(default="max", description="How scales are fused; max is DeepLab v2's")
    crf: bool = Field(default=True, description="Refine masks with the dense CRF")
    crf_params: CRFName = Field(
        default="kazuto", description="Named CRF parameter set, or what tune-crf wrote into the model's card"
    )
    crf_mode: Literal["fast", "exact"] = Field(
        default="fast", description="fast prunes absent classes; exact is pydensecrf's model"
    )
    crf_backend: Literal["auto", "native", "torch", "pydensecrf"] = Field(
        default="auto", description="What computes the CRF; auto is native, and torch where GPUs measure faster with it"
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="Arithmetic of scoring")
    tile: int = Field(default=1025, ge=193, le=8193, description="Images above tile x tile pixels are scored in tiles")
    overlap: int = Field(default=128, ge=0, le=1024, description="Pixels that tiles share")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=100_000_000_000,
        description="Images above are error rows; those above 60 million are read in bands",
    )
    chunk_size: int = Field(default=20_000, ge=1, le=10_000_000, description="Images per commit")
    limit: int | None = Field(default=None, ge=1, description="Take only the first so many images of the archive")
    include: tuple[str, ...] = Field(default=(), description="Patterns of names to take; '*' takes every file")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns of names to leave out")
    max_error_rate: float = Field(default=0.05, ge=0, le=1, description="Fail, after committing, above this share of error rows")
    retry_errors: bool = Field(default=False, description="Take up images whose row is an error again")
    address: str | None = Field(
        default=None, description="Ray cluster (host:port or 'auto'), or its Jobs API (http://host:8265); none starts Ray here"
    )

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.archive)} with {short(self.model)}"


class TrainOptions(BaseModel):
    """One run of `deeplab train`. What is None is as the preset has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images")
    model_out: str = Field(description="Model folder or s3:// prefix to write")
    preset: str = Field(default="finetune", description="Training preset")
    init: str = Field(default="pets", description="Weights to start from: a model, or ImageNet .safetensors")
    layout: str = Field(default="auto", description="How the data set is laid out")
    split: str = Field(default="train", description="Split to train on")
    val_split: str = Field(default="val", description="Split to choose the best weights on")
    name: Annotated[str, AfterValidator(model_name)] | None = Field(
        default=None, description="Name in the model card; default model_out's last part"
    )
    licence: str = Field(default="not stated", description="Licence of the data, for the model card")
    steps: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1, description="Crops per optimizer step, over all workers")
    crop: int | None = Field(default=None, ge=33)
    learning_rate: float | None = Field(default=None, gt=0)
    schedule: Literal["poly", "step"] | None = Field(default=None)
    objective: Literal["single", "official", "kazuto"] | None = Field(default=None)
    ema: float | None = Field(default=None, ge=0, lt=1)
    seed: int | None = Field(default=None, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(default=None)
    clip_norm: float | None = Field(default=None, ge=0)
    batch_norm: Literal["frozen", "sync"] | None = Field(default=None)
    validate_every: int | None = Field(default=None, ge=1)
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto")
    loaders: int = Field(default=1, ge=0, description="Processes that read and augment ahead, per worker")
    accumulate: int = Field(default=1, ge=1, description="Passes per worker that make one optimizer step")
    compile: bool = Field(default=False, description="torch.compile the network")
    checkpoint_every: int = Field(default=0, ge=0, description="Also save the state every so many steps")
    keep: int = Field(default=2, ge=1, description="Newest states that stay; the best step's stays too")
    resume: bool = Field(default=False, description="Go on with the unfinished training in model_out")
    skip_broken: bool = Field(default=False, description="Leave broken pairs out instead of refusing the data set")
    workers: int = Field(default=1, ge=1, le=4096, description="Processes that train together")
    min_workers: int | None = Field(default=None, ge=1, description="Go on with as few when nodes are lost")
    resize_every: float = Field(default=60, gt=0, description="Seconds between looks for nodes, with min_workers")
    address: str | None = Field(default=None, description="Ray cluster (host:port or 'auto'); none starts Ray here")
    retries: int = Field(default=3, ge=0, description="Restarts from the last state after a worker or node died")
    start_timeout: float = Field(default=600, gt=0, description="Seconds to wait for the cluster to give the workers")


class EvaluateOptions(BaseModel):
    """One model, or the masks of a results table, against the labels of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Bundled model, model folder, REGISTRY@ALIAS, or a results table")
    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images")
    split: str = Field(default="val", pattern=r"^[\w.-]+$", description="Split to score")
    layout: str = Field(default="auto", description="How the data set is laid out")
    rows_of: str | None = Field(default=None, description="Of a results table: the model whose rows count; default the latest")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        default=(1.0,), min_length=1, max_length=8, description="Scales of the input, fused per position"
    )
    flip: bool = Field(default=False, description="Also score the mirror image and average")
    fusion: Literal["max", "mean"] = Field(default="max", description="How scales are fused")
    crf: bool = Field(default=False, description="Refine with the dense CRF before counting")
    crf_params: CRFName = Field(default="kazuto", description="Named CRF parameter set, or the model card's")
    crf_mode: Literal["fast", "exact"] = Field(default="fast", description="fast prunes absent classes")
    trimap: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), max_length=50, description="Also count within these distances (pixels) of void boundaries"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to compute")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(default="auto", description="Arithmetic of scoring")
    workers: int = Field(default=1, ge=1, le=4096, description="Processes that score, through Ray")
    address: str | None = Field(default=None, description="Ray cluster (host:port or 'auto'); none starts Ray here")
    start_timeout: float = Field(default=600, gt=0, description="Seconds to wait for a cluster that has no CPU to give")

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.model)} on {self.split} of {short(self.dataset)}"


class TuneOptions(BaseModel):
    """A search for the CRF parameters that suit one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Model folder, whose card takes the winner; or a bundled model, without --write")
    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images")
    split: str = Field(default="val", pattern=r"^[\w.-]+$", description="Split to search on")
    layout: str = Field(default="auto", description="How the data set is laid out")
    images: int = Field(default=100, ge=1, le=5000, description="Images to search on, evenly from the split; the papers take 100")
    grid: Literal["deeplab-v2", "deeplab-v1"] = Field(default="deeplab-v2", description="Whose coarse grid")
    rounds: int = Field(default=2, ge=0, le=6, description="Finer rounds around the best, each at half the step")
    scales: tuple[Annotated[float, Field(gt=0, le=4)], ...] = Field(
        default=(1.0,), min_length=1, max_length=8, description="Scales of the input, fused per position"
    )
    flip: bool = Field(default=False, description="Also score the mirror image and average")
    fusion: Literal["max", "mean"] = Field(default="max", description="How scales are fused")
    crf_mode: Literal["fast", "exact"] = Field(default="fast", description="fast prunes absent classes")
    write: bool = Field(default=True, description="Write the winner into the model's card")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to score")
    workers: int = Field(default=1, ge=1, le=4096, description="Processes that score and refine, through Ray")
    address: str | None = Field(default=None, description="Ray cluster (host:port or 'auto'); none starts Ray here")
    start_timeout: float = Field(default=600, gt=0, description="Seconds to wait for a cluster that has no CPU to give")
