"""S3 errors as ours: a fault of one object, or of the store and the connection to it."""

from __future__ import annotations

import errno
import re

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    ParamValidationError,
    SSLError,
)
from urllib3.exceptions import HTTPError

from deeplab.errors import one_line
from pipelines.storage.storage_errors import EntryError, Outage, StorageError

# What the client raises; HTTPError if a response breaks off in its body.
FAILURES = (ClientError, BotoCoreError, HTTPError)
# Answers of a store that is in trouble itself; any other refusal (of a key, a signature, a bucket) is permanent.
OVERLOADED = re.compile(r"\b(5\d\d|408|409|425|429|SlowDown|RequestTimeout|Throttling\w*|InternalError|ServiceUnavailable)\b")
REFUSED = re.compile(
    r"NoSuchBucket|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|40[013] |Unauthorized|Forbidden"
    r"|PermissionDenied|lacked the necessary privileges|certificate|InvalidBucketName|MissingCredentials"
)


def as_os_error(error: Exception, uri: str, endpoint: str | None) -> OSError:
    """The error of a request to `endpoint` (None: AWS): one of `storage_errors.OWN` if it is about one object, else StorageError
    or Outage."""
    if isinstance(error, ParamValidationError):
        return EntryError(errno.EINVAL, f"not a name that S3 accepts ({one_line(error)})", uri)
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return StorageError(f"{uri}: no such bucket")
        if code in ("NoSuchKey", "404", "NotFound"):
            return FileNotFoundError(2, "No such object", uri)
        if code == "InvalidObjectState":
            return PermissionError(13, "object is in cold storage and must be restored first", uri)
        if code == "AccessDenied" or (code == "403" and status == 403):
            return PermissionError(13, "Access denied", uri)
        if code.startswith("KMS.") or "Server Side Encryption" in message:
            return PermissionError(13, f"the object is encrypted, and its key is not available ({code})", uri)
        if code in ("InvalidRange", "416"):
            return EntryError(errno.EINVAL, "the object ends before the requested range", uri)
        if code.startswith("KeyTooLong"):
            return EntryError(errno.ENAMETOOLONG, "the key is too long for the store", uri)
        kind = Outage if OVERLOADED.search(f"{code} {status}") else StorageError
        return kind(f"{uri}: the store answered {code} ({status})")
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StorageError(
            f"{uri}: the certificate of {endpoint or 'S3'} is not trusted; for your own certificate authority, AWS_CA_BUNDLE and "
            "SSL_CERT_FILE must both name its certificate file"
        )
    if not isinstance(error, HTTPClientError | ConnectionError | IncompleteReadError | HTTPError):
        return StorageError(f"{uri}: {unusable(error, endpoint)}")
    # A message of botocore may hold a whole request; its class says enough.
    return Outage(f"{uri}: {endpoint or 'S3'} cannot be reached or closed the connection ({type(error).__name__})")


def unusable(error: Exception, endpoint: str | None) -> str:
    """The message of an error before any request: half a pair of keys, no region, an unknown setting."""
    return f"the settings for {endpoint or 'S3'} cannot be used ({str(error).splitlines()[0][:200]})"


def as_answered(uri: str, error: Exception, line: str) -> StorageError:
    """Another library's error about the store as ours; `line`: its message in short."""
    if REFUSED.search(str(error)):
        return StorageError(f"{uri}: the store refuses access ({line})")
    return Outage(f"{uri}: the store cannot be reached or closed the connection ({line})")
