"""Options of a flow besides the work itself; they become a part of the form in the Prefect UI."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class ReportOptions(BaseModel):
    """The report at the end of a run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hourly_price: float | None = Field(
        default=None,
        ge=0,
        description="Price of the machines per hour, for the cost line; default: the server's variable deeplab_hourly_price",
    )
    photos: int = Field(default=6, ge=0, le=60, description="Photos on the contact sheet; 0 for none")
    page: str | None = Field(
        default=None,
        description="Folder for the report page (deeplab report), on the machine that runs the flow; default: no page",
    )
