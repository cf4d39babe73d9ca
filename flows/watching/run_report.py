"""The final report of a segmentation, as Markdown with a contact sheet."""

import base64
import io
import tempfile
from pathlib import Path

from PIL import Image
from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.logging import get_run_logger

from flows.console.pace import duration
from flows.watching.progress import slug
from pipelines.exports.sample_sheet import show
from pipelines.report.static_page import ReportError, build
from pipelines.segment.run import Summary
from pipelines.table import counts
from pipelines.table.results_table import ResultsTable
from pipelines.table.table_errors import ResultsError

SHEET_WIDTH = 1100  # pixels; keeps the picture near 100 KB, as it travels inside the artifact


def markdown(summary: Summary, previous: dict[str, float], previous_name: str, hourly_price: float | None) -> str:
    """The report's text. `previous`: class shares of the run `previous_name`, for comparison; empty for the first run."""
    good = summary.images - summary.errors
    facts = [
        ("images done by this run", f"{summary.images:,} ({good:,} masks, {summary.errors:,} error rows)"),
        ("had a row before", f"{summary.already:,}"),
        ("images in the archive", f"{summary.archive_images:,}"),
        ("passed over by name", f"{summary.passed_over:,}"),
        ("outputs of deeplab, passed over", f"{summary.outputs:,}"),
        ("rate", f"{summary.images_per_second:.2f} images/s over {duration(summary.seconds)}, with the start of workers"),
        ("model", f"`{summary.model}`"),
        ("table", f"`{summary.results}`, version {summary.version}"),
        ("run in the table", f"`{summary.run}`"),
    ]
    if hourly_price:
        cost = hourly_price * summary.seconds / 3600
        per = f", {1000 * cost / summary.images:.4f} per 1,000 images" if summary.images else ""
        facts.append(("cost", f"{cost:.4f} at {hourly_price:g} an hour{per}"))
    lines = ["# Segmentation", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts)]
    if summary.errors_by_reason:
        lines += ["", "## Errors by reason", "", "| images | reason |", "|---:|---|"]
        lines += [f"| {count:,} | {_cell(reason)} |" for reason, count in summary.errors_by_reason.items()]
    if summary.seconds_by_stage:
        total = sum(summary.seconds_by_stage.values()) or 1.0
        lines += ["", "## Seconds by stage, summed over processes", "", "| stage | seconds | share |", "|---|---:|---:|"]
        lines += [f"| {stage} | {value:.1f} | {value / total:.0%} |" for stage, value in summary.seconds_by_stage.items()]
    if summary.bound:
        lines += ["", f"Bound by {summary.bound}."]
    if summary.class_shares:
        lines += ["", "## Share of the pixels", ""]
        if previous:
            lines += [f"Compared with {previous_name}.", "", "| class | this run | before | change |", "|---|---:|---:|---:|"]
            for name, share in summary.class_shares.items():
                before = f"{previous[name]:.2%} | {share - previous[name]:+.2%}" if name in previous else "- | -"
                lines.append(f"| {_cell(name)} | {share:.2%} | {before} |")
        else:
            lines += ["| class | this run |", "|---|---:|"]
            lines += [f"| {_cell(name)} | {share:.2%} |" for name, share in summary.class_shares.items()]
    return "\n".join(lines) + "\n"


def publish(summary: Summary, hourly_price: float | None, photos: int, page: str | None = None) -> str:
    """Publish the report and the contact sheet as artifacts of the current run; returns the report's text.

    `page`: folder for the report page, to which an artifact links. A folder that cannot be written is a warning in the log.
    """
    table = ResultsTable.open(summary.results)
    before = counts.previous_run(table, summary.run)
    shares = counts.class_shares(table, before[1], before[0]) if before else {}
    text = markdown(summary, shares, f"`{before[0]}` of `{before[1]}`" if before else "", hourly_price)
    key = slug(summary.results)
    picture = sheet(table, summary.model, photos) if photos else None
    if picture:
        text += f"\n## Contact sheet\n\n![photos and masks]({picture})\n"
        create_image_artifact(image_url=picture, key=f"sheet-{key}", description=f"Photos and masks of {summary.model}")
    if page:
        try:
            place = build(table, Path(page).absolute(), summary.model).page.as_uri()
            create_link_artifact(link=place, key=f"page-{key}", description="The report page, on the machine that ran the flow")
        except ReportError as error:
            get_run_logger().warning(f"no report page: {error}")
    create_markdown_artifact(text, key=f"report-{key}", description=f"{summary.images:,} images, {summary.errors:,} errors")
    return text


def sheet(table: ResultsTable, model: str, photos: int) -> str | None:
    """A contact sheet as a data: URL, which needs no file beside the page; None if no photo can be shown."""
    with tempfile.TemporaryDirectory(prefix="deeplab-") as folder:
        path = Path(folder) / "sheet.png"
        try:
            show(table, model, path, photos)
        except ResultsError:
            return None
        with Image.open(path) as image:
            return picture_url(image)


def picture_url(image: Image.Image) -> str:
    """A picture as a JPEG data: URL no wider than SHEET_WIDTH."""
    picture = image.convert("RGB")
    picture.thumbnail((SHEET_WIDTH, 4 * SHEET_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
