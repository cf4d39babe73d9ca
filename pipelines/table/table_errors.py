"""Errors of a results table, and the Delta library's errors as ours."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from deltalake.exceptions import CommitFailedError, DeltaError

from deeplab.errors import UserError, one_line
from pipelines.storage import filesystems
from pipelines.storage.s3_errors import as_answered


class ResultsError(UserError):
    """The results table cannot be used; the message says what is there and what is accepted."""


class CommitConflict(UserError):
    """Another run committed at the same time; look at its rows and commit again."""


def delta_trouble(uri: str, failure: str, error: Exception) -> UserError:
    """The Delta library's error as ours: Outage if a store is down, else a ResultsError that begins with `failure`."""
    if isinstance(error, UserError):
        return error
    answered = _answered(uri, error)
    if isinstance(error, OSError) and answered.passing:
        return answered
    return ResultsError(f"{uri}: {failure} ({delta_reason(error)})")


@contextmanager
def storage_trouble(uri: str) -> Iterator[None]:
    """Turns the Delta library's errors in the body, except conflicts, into a StorageError of one line."""
    try:
        yield
    except CommitFailedError:
        raise
    except (OSError, DeltaError) as error:
        raise _answered(uri, error) from error


def _answered(uri: str, error: Exception) -> filesystems.StorageError:
    """An error of a store may be an Outage; that of a disk (full, read-only) is not."""
    line = delta_reason(error)
    return as_answered(uri, error, line) if filesystems.is_s3(uri) else filesystems.StorageError(f"{uri}: {line}")


def delta_reason(error: BaseException) -> str:
    """The Delta library's message without colours and line breaks; its reason is at the end."""
    text = one_line(error, sys.maxsize)
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
