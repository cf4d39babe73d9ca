"""What a store's answer means: a fault of one object, or of the store and the way to it."""

from __future__ import annotations

import errno

from botocore.exceptions import BotoCoreError, ClientError, ParamValidationError, SSLError
from urllib3.exceptions import HTTPError

from pipelines.faults import EntryError, StorageError

# What the client raises; the last where an answer's body breaks off.
FAILURES = (ClientError, BotoCoreError, HTTPError)


def as_os_error(error: Exception, uri: str, endpoint: str | None) -> OSError:
    """What the store at `endpoint` (None: AWS) answered: an error of `faults.OWN` if it is about one object, else StorageError."""
    if isinstance(error, ParamValidationError):
        return EntryError(errno.EINVAL, f"not a name that S3 accepts ({' '.join(str(error).split())[:200]})", uri)
    if isinstance(error, ClientError):
        code = str(error.response.get("Error", {}).get("Code", ""))
        message = str(error.response.get("Error", {}).get("Message", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code == "NoSuchBucket":
            return StorageError(f"{uri}: there is no such bucket")
        if code in ("NoSuchKey", "404", "NotFound"):
            return FileNotFoundError(2, "No such object", uri)
        if code == "InvalidObjectState":
            return PermissionError(13, "object is in cold storage and must be restored first", uri)
        if code == "AccessDenied" or (code == "403" and status == 403):
            return PermissionError(13, "Access denied", uri)
        if code.startswith("KMS.") or "Server Side Encryption" in message:
            return PermissionError(13, f"the object is encrypted, and its key is not to be had ({code})", uri)
        if code in ("InvalidRange", "416"):
            return EntryError(errno.EINVAL, "the object ends before what is to be read of it", uri)
        if code.startswith("KeyTooLong"):
            return EntryError(errno.ENAMETOOLONG, "the key is too long for the store", uri)
        return StorageError(f"{uri}: the store answered {code} ({status})")
    if isinstance(error, SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return StorageError(
            f"{uri}: the certificate of {endpoint or 'S3'} is not trusted; for an authority of your own, AWS_CA_BUNDLE and "
            "SSL_CERT_FILE must both name the file of its certificate"
        )
    # Botocore's own messages may hold the whole request; its kind says enough.
    return StorageError(f"{uri}: {endpoint or 'S3'} cannot be reached or broke off ({type(error).__name__})")
