"""Which rows a run replaces: error rows (`--retry-errors`), and masks that were made with other settings (`--redo`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import pyarrow as pa
import pyarrow.compute as pc

from deeplab.scoring.settings import Precision, alike

COLUMNS = ("status", "scored", "refined", "run")  # of a row, that decide


@dataclass(frozen=True)
class MaskSettings:
    """How a run makes masks: its texts for the columns `scored` and `refined`, and the precision that it asks for."""

    scored: str
    refined: tuple[str, ...] = ()
    """One text, none without a CRF; a further one is what the first falls back to."""
    precision: Precision = "auto"

    def made(self, scored: str | None, refined: str | None) -> bool:
        """Whether a mask with these columns was made with these settings. Rows of older tables do not tell (None)."""
        engines = set(refined.split(" and ")) if refined else set()
        fitting = engines <= set(self.refined) and bool(engines) == bool(self.refined)
        return scored is not None and fitting and alike(scored, self.scored, self.precision)


@dataclass(frozen=True)
class Replacement:
    """The rows that run `run` replaces by new ones of their images; never its own.

    `errors`: error rows. `others_than`: masks that were made with other settings than these; None is none.
    """

    run: str = ""
    errors: bool = False
    others_than: MaskSettings | None = None

    def __bool__(self) -> bool:
        return self.errors or self.others_than is not None

    def mask(self, rows: pa.Table) -> pa.ChunkedArray:
        """Whether each of `rows`, with the columns COLUMNS, is replaced."""
        ok = pc.equal(rows["status"], "ok")
        replaced = pc.and_(pc.invert(ok), pa.scalar(self.errors))
        if self.others_than is not None:
            otherwise = pa.chunked_array([made_otherwise(rows, self.others_than)], pa.bool_())
            replaced = pc.or_(replaced, pc.and_(ok, otherwise))
        return pc.and_(replaced, pc.not_equal(rows["run"], self.run))


NOTHING = Replacement()


def as_text(scored: str | None, refined: str | None) -> str:
    """The settings of a mask, for people."""
    return f"{scored or 'an earlier release, which did not tell its settings'}, {f'CRF {refined}' if refined else 'no CRF'}"


def made_otherwise(rows: pa.Table, settings: MaskSettings) -> list[bool]:
    """Whether each of `rows`, with the columns `scored` and `refined`, was made with other settings than these."""
    made = lru_cache(maxsize=256)(settings.made)  # a table has few different texts
    return [not made(*pair) for pair in zip(rows["scored"].to_pylist(), rows["refined"].to_pylist(), strict=True)]
