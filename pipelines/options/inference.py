"""Options of what works with a model: segmenting, evaluating, and the search for its CRF parameters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deeplab.images import MAX_PIXELS
from pipelines.options.parts import (
    BrokenPairs,
    ClusterOptions,
    CRFMode,
    DataSetOptions,
    JobOptions,
    ModelOptions,
    Options,
    RefinementOptions,
    ScoringOptions,
    Spelling,
    short,
)


class Places(Options):
    """What is segmented, by which model, into which table."""

    archive: str = Field(description="Folder, glob, list file (.txt), inventory (.parquet) or s3:// prefix of images")
    results: str = Field(description="Folder or s3:// prefix of the results table; created when missing")
    model: Annotated[str, Spelling("-m")] = Field(
        default="pets", description="Bundled model (see `deeplab models`), model folder or REGISTRY@ALIAS"
    )


class SegmentOptions(JobOptions, RefinementOptions, ScoringOptions, Places):
    """One run of `deeplab segment`."""

    max_pixels: int = Field(
        default=MAX_PIXELS,
        ge=1,
        le=100_000_000_000,
        description="Images with more pixels become error rows; raise it for large images",
    )
    commit_every: float = Field(default=60, gt=0, le=86400, description="Seconds between commits: what a dead driver can lose")
    limit: int | None = Field(default=None, ge=1, description="Take only the first LIMIT images of the archive")
    include: tuple[str, ...] = Field(default=(), description="Pattern of names to take; '*' takes every file")
    exclude: tuple[str, ...] = Field(default=(), description="Pattern of names to leave out")
    max_error_rate: float = Field(
        default=0.05, ge=0, le=1, description="Fail (exit code 3), after committing, above this share of error rows"
    )
    retry_errors: bool = Field(default=False, description="Take up images whose row is an error again")

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.archive)} with {short(self.model)}"


class EvaluateOptions(BrokenPairs, ClusterOptions, RefinementOptions, ScoringOptions, DataSetOptions, ModelOptions):
    """One model, or the masks of a results table, against the labels of one split."""

    model: str = Field(description="Bundled model, model folder, REGISTRY@ALIAS, or a results table")
    crf: bool = Field(default=False, description="Refine with the dense CRF before counting")
    rows_of: str | None = Field(default=None, description="Of a results table: the model whose rows count; default the latest")
    trimap: tuple[Annotated[int, Field(ge=1, le=1000)], ...] = Field(
        default=(), max_length=50, description="Also count within these distances (pixels) of void boundaries, e.g. 2,5,10"
    )

    @property
    def title(self) -> str:
        """The run in a few words, for lists of runs."""
        return f"{short(self.model)} on {self.split} of {short(self.dataset)}"


class TuneOptions(ClusterOptions, ScoringOptions, DataSetOptions, ModelOptions):
    """A search for the CRF parameters that suit one model."""

    model: str = Field(description="Model folder or s3:// prefix, whose card takes the winner; or any other model, with write off")
    crf_mode: CRFMode = "fast"
    images: int = Field(default=100, ge=1, le=5000, description="Images to search on, evenly from the split; the papers take 100")
    grid: Literal["deeplab-v2", "deeplab-v1"] = Field(
        default="deeplab-v2", description="Coarse grid: deeplab-v2 has 128 candidates, deeplab-v1 288"
    )
    rounds: int = Field(default=2, ge=0, le=6, description="Finer rounds around the best, each at half the step")
    write: bool = Field(default=True, description="Write the winner into the model's card")
