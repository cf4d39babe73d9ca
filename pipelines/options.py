"""What a person sets for a run; bounds, and what two options ask of each other, live in the schema, so that every face of it
refuses the same, before any work."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from deeplab.images import LEAST_STRIDE, MAX_PIXELS
from deeplab.names import model_name
from deeplab.presets import PRESETS

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
    crf_backend: Literal["native", "torch", "pydensecrf"] = Field(
        default="native", description="What computes the CRF: native on the cores; torch, always exact, on the GPUs; pydensecrf"
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
    commit_every: float = Field(default=60, gt=0, le=86400, description="Seconds between commits of what is finished")
    limit: int | None = Field(default=None, ge=1, description="Take only the first so many images of the archive")
    include: tuple[str, ...] = Field(default=(), description="Patterns of names to take; '*' takes every file")
    exclude: tuple[str, ...] = Field(default=(), description="Patterns of names to leave out")
    max_error_rate: float = Field(default=0.05, ge=0, le=1, description="Fail, after committing, above this share of error rows")
    retry_errors: bool = Field(default=False, description="Take up images whose row is an error again")
    address: str | None = Field(
        default=None, description="Ray cluster (host:port or 'auto'), or its Jobs API (http://host:8265); none starts Ray here"
    )

    @field_validator("overlap")
    @classmethod
    def _less_than_a_tile(cls, overlap: int, info: ValidationInfo) -> int:
        tile = info.data.get("tile")  # not there when it is out of bounds itself, which is said then
        if tile is not None and overlap > tile - LEAST_STRIDE:
            raise ValueError(f"at most {tile - LEAST_STRIDE} is accepted with a tile of {tile}")
        return overlap

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.archive)} with {short(self.model)}"


class Training(BaseModel):
    """A training, whatever becomes of its model. What is None is as the preset has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str = Field(description="Folder, s3:// prefix or pack of labelled images (docs/training.md)")
    preset: str = Field(default="finetune", description="Training preset", json_schema_extra={"enum": list(PRESETS)})
    init: str = Field(default="pets", description="Weights to start from: a model, or ImageNet .safetensors")
    layout: str = Field(default="auto", pattern=r"^[\w-]+$", description="How the data set is laid out (docs/training.md)")
    split: str = Field(default="train", pattern=r"^[\w.-]+$", description="Split to train on")
    val_split: str = Field(
        default="val", pattern=r"^[\w.-]+$", validate_default=True, description="Split to choose the best weights on"
    )
    name: Annotated[str, AfterValidator(model_name)] | None = Field(
        default=None, description="Name in the model card; default the folder's"
    )
    steps: int | None = Field(default=None, ge=1, description="Instead of the preset's steps")
    batch_size: int | None = Field(
        default=None, ge=1, le=4096, description="Instead of the preset's crops per optimizer step, over all workers"
    )
    crop: int | None = Field(default=None, ge=33, le=4097, description="Instead of the preset's crop, in pixels")
    learning_rate: float | None = Field(default=None, gt=0, description="Instead of the preset's learning rate")
    schedule: Literal["poly", "step"] | None = Field(default=None, description="Instead of the preset's fall of the rate")
    objective: Literal["single", "official", "kazuto"] | None = Field(default=None, description="One loss, or one per scale (MSC)")
    ema: float | None = Field(default=None, ge=0, lt=1, description="Instead of the preset's running mean of the weights; 0 is off")
    seed: int | None = Field(default=None, ge=0, description="Instead of the preset's seed")
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="Instead of the preset's")
    clip_norm: float | None = Field(default=None, ge=0, description="Instead of the preset's greatest gradient; 0 is off")
    batch_norm: Literal["frozen", "sync"] | None = Field(default=None, description="Instead of the preset's")
    validate_every: int | None = Field(default=None, ge=1, description="Instead of the preset's steps between validations")
    accumulate: int = Field(default=1, ge=1, le=4096, description="Passes per worker that make one optimizer step")
    compile: bool = Field(default=False, description="Run the network through torch.compile")
    checkpoint_every: int = Field(default=0, ge=0, description="Also save the state every so many steps")
    keep: int = Field(default=2, ge=1, description="Newest states that stay; the best step's stays too")
    skip_broken: bool = Field(default=False, description="Leave broken pairs out instead of refusing the data set")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train")
    loaders: int = Field(default=1, ge=0, le=64, description="Processes that read and augment ahead, per worker")
    workers: int = Field(default=1, ge=1, le=4096, validate_default=True, description="Processes that train together")
    min_workers: int | None = Field(default=None, ge=1, description="Go on with as few when nodes are lost")
    resize_every: float = Field(default=60, gt=0, description="Seconds between looks for nodes, with min_workers")
    retries: int = Field(default=3, ge=0, description="Restarts from the last state after a worker or node died")
    start_timeout: float = Field(default=600, gt=0, description="Seconds to wait for the cluster to give the workers")
    licence: str = Field(default="not stated", description="Licence of the data, for the model card")

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            nearest = get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
            raise ValueError(f"nearest {nearest}; one of {', '.join(PRESETS)} is accepted")
        return preset

    @field_validator("workers")
    @classmethod
    def _together(cls, workers: int, info: ValidationInfo) -> int:
        """Each worker has at least one crop a pass, and what statistics over all of them need."""
        chosen = info.data
        if "preset" not in chosen:
            return workers
        preset, accumulate = PRESETS[chosen["preset"]](), chosen.get("accumulate", 1)
        batch = chosen.get("batch_size") or preset.batch_size
        if workers * accumulate > batch:
            raise ValueError(
                f"a batch of {batch} cannot be divided over {workers} workers x {accumulate} passes: each needs at least one crop"
            )
        if workers > 1 and chosen.get("device") == "cpu" and (chosen.get("batch_norm") or preset.batch_norm) == "sync":
            raise ValueError("batch_norm sync with several workers needs GPUs; one worker, or batch_norm frozen, is accepted")
        return workers

    @field_validator("min_workers")
    @classmethod
    def _at_most_all(cls, least: int | None, info: ValidationInfo) -> int | None:
        workers = info.data.get("workers")
        if least is not None and workers is not None and least > workers:
            raise ValueError(f"at most the {workers} of workers are accepted")
        return least


class TrainOptions(Training):
    """One run of `deeplab train`."""

    model_out: str = Field(description="Model folder or s3:// prefix to write")
    resume: bool = Field(default=False, description="Go on with the unfinished training in model_out")
    address: str | None = Field(default=None, description="Ray cluster (host:port or 'auto'); none starts Ray here")


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
    skip_broken: bool = Field(default=False, description="Leave broken pairs out instead of refusing the data set")

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.model)} on {self.split} of {short(self.dataset)}"


class TuneOptions(BaseModel):
    """A search for the CRF parameters that suit one model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="Model folder or s3:// prefix, whose card takes the winner; or any other model, without write")
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
