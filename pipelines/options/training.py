"""Options of a training."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator

from deeplab.safe_names import ALIAS, model_name
from deeplab.training.presets import PRESETS
from pipelines.options.shared import ClusterOptions, DataSetOptions, Options, SkipBroken, Spelling, short


class PresetOptions(Options):
    """A preset and overrides of its values, None for none; deeplab.training.presets.TrainingConfig documents the fields."""

    preset: str = Field(
        default="finetune",
        description="Training preset; `deeplab models --presets` lists them",
        json_schema_extra={"enum": list(PRESETS)},
    )
    steps: int | None = Field(default=None, ge=1, description="Override the preset's steps, which may follow from the data")
    batch_size: int | None = Field(default=None, ge=1, le=4096, description="Override the crops per step, over all workers")
    crop: int | None = Field(default=None, ge=33, le=4097, description="Override the preset's crop, in pixels")
    learning_rate: float | None = Field(default=None, gt=0, description="Override the preset's learning rate")
    schedule: Literal["poly", "step"] | None = Field(default=None, description="Override the decay of the learning rate")
    objective: Literal["single", "official", "kazuto"] | None = Field(
        default=None, description="Override: a single loss, or one per scale (MSC): official or kazuto"
    )
    ema: float | None = Field(default=None, ge=0, lt=1, description="Override the decay of the weights' running mean; 0 is off")
    seed: int | None = Field(default=None, ge=0, description="Override the preset's seed")
    precision: Literal["float32", "bfloat16", "float16"] | None = Field(default=None, description="Override the number format")
    clip_norm: float | None = Field(default=None, ge=0, description="Override the largest gradient norm; 0 is off")
    batch_norm: Literal["frozen", "affine", "sync"] | None = Field(default=None, description="Override the mode of batch norm")
    validate_every: int | None = Field(default=None, ge=1, description="Override the steps between validations")

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        if preset not in PRESETS:
            nearest = get_close_matches(preset, PRESETS, n=1, cutoff=0.0)[0]
            raise ValueError(f"nearest {nearest}; one of {', '.join(PRESETS)} is accepted")
        return preset


class ExecutionOptions(Options):
    """How a training runs; deeplab.training.loop.Execution documents the fields."""

    loaders: int | None = Field(
        default=None,
        ge=0,
        le=64,
        description="Processes that read and augment ahead, per worker; default on a GPU the worker's share of its machine's "
        "CPUs, less one, 1 to 8, and on a CPU 1",
    )
    accumulate: int = Field(
        default=1, ge=1, le=4096, description="Passes per worker and optimizer step: more need less memory, with the same result"
    )
    compile: bool = Field(default=False, description="Run the network through torch.compile")
    checkpoint_every: int = Field(default=0, ge=0, description="Also save the state after every so many steps")
    keep: int = Field(default=2, ge=1, description="Newest states to keep, besides that of the best step")


class Training(ClusterOptions, ExecutionOptions, PresetOptions, DataSetOptions):
    """The options of a training that all commands share."""

    split: str = Field(default="train", pattern=r"^[\w.-]+$", description="Split to train on")
    val_split: str = Field(
        default="val", pattern=r"^[\w.-]+$", validate_default=True, description="Split to choose the best weights on"
    )
    skip_broken: SkipBroken = False
    init: str | None = Field(
        default=None,
        description="Weights to start from: a model, or ImageNet .safetensors in torchvision's keys; default the preset's",
    )
    name: Annotated[str, AfterValidator(model_name)] | None = Field(
        default=None, description="Name in the model card; default the folder's"
    )
    licence: str = Field(default="not stated", description="Licence of the data, for the model card")
    min_workers: int | None = Field(default=None, ge=1, description="Least workers to continue with after nodes are lost")
    resize_every: float = Field(default=60, gt=0, description="Seconds between checks for more nodes, with min_workers")
    retries: int = Field(default=3, ge=0, description="Restarts from the last state after a worker or node dies")

    @field_validator("workers")
    @classmethod
    def _together(cls, workers: int, info: ValidationInfo) -> int:
        """Each worker needs at least one crop per pass, and sync batch norm over several workers needs GPUs."""
        chosen = info.data
        if "preset" not in chosen:
            return workers
        preset, accumulate = PRESETS[chosen["preset"]](), chosen.get("accumulate", 1)
        batch = chosen.get("batch_size") or preset.batch_size
        if workers * accumulate > batch:
            raise ValueError(
                f"a batch of {batch} cannot be split over {workers} workers x {accumulate} passes: each needs at least one crop"
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
    resume: bool = Field(default=False, description="Continue the unfinished training in MODEL_OUT")


class RegisteredTraining(Training):
    """A training as a flow: the model is evaluated and may get an alias in a registry."""

    out: Annotated[str, Spelling(argument="MODEL_OUT")] = Field(
        description="Model folder or s3:// prefix to write; an unfinished training in it is continued"
    )
    registry: str | None = Field(default=None, description="Folder or s3:// prefix of the model registry; none registers nothing")
    alias: str = Field(
        default="production",
        pattern=f"^{ALIAS.pattern}$",
        description="Alias that moves to the model if its mIoU on val_split is not worse",
    )

    @field_validator("val_split")
    @classmethod
    def _another(cls, val_split: str, info: ValidationInfo) -> str:
        if val_split == info.data.get("split"):
            raise ValueError("the best weights cannot be chosen on the training split; another split is accepted")
        return val_split

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.out)} on {short(self.dataset)}"
