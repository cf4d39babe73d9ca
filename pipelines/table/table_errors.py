"""What goes wrong with a results table, and what the Delta library's errors mean."""

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
    """Another run committed at the same time; look at what it brought and commit again."""


def delta_trouble(uri: str, what: str, error: Exception) -> UserError:
    """An outage of a store as one, which passes; anything else that the Delta library met as a ResultsError."""
    if isinstance(error, UserError):
        return error
    answered = _answered(uri, error)
    if isinstance(error, OSError) and answered.passing:
        return answered
    return ResultsError(f"{uri}: {what} ({delta_reason(error)})")


@contextmanager
def storage_trouble(uri: str) -> Iterator[None]:
    """Trouble that the Delta library has with the storage, as a StorageError in one line; a conflict stays one."""
    try:
        yield
    except CommitFailedError:
        raise
    except (OSError, DeltaError) as error:
        raise _answered(uri, error) from error


def _answered(uri: str, error: Exception) -> filesystems.StorageError:
    """What a store says may pass; what a disk says (it is full, it is read-only) stays."""
    line = delta_reason(error)
    return as_answered(uri, error, line) if filesystems.is_s3(uri) else filesystems.StorageError(f"{uri}: {line}")


def delta_reason(error: BaseException) -> str:
    """What the Delta library says, without its colours and line breaks; its reason is at the end."""
    text = one_line(error, sys.maxsize)
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-200:]}"
