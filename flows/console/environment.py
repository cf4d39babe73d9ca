"""Environment of every command, to be set before Prefect or Ray is imported. What is set already stays."""

from __future__ import annotations

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

DEFAULTS = {
    # The embedded server of `deeplab run`, which needs more than Prefect's 20 s on a busy machine.
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Nothing is reported to anybody.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A sign of life from every served run, by which the server's automation tells a dead one (`deeplab setup-prefect`).
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
# A server that is started again is away for up to a minute or two; runs wait that long for it: 2 + 4 + ... + 64 s.
# The embedded one never comes back.
SERVER_RETRIES, EMBEDDED_RETRIES = "6", "2"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# What writes below the home folder by itself, and where it writes instead.
BELOW_HOME = {
    "PREFECT_HOME": "prefect",
    "XDG_CACHE_HOME": "cache",
    "XDG_STATE_HOME": "state",
    "MPLCONFIGDIR": "matplotlib",
    "HF_HOME": "huggingface",
}


def prepare() -> str | None:
    """Set what is not set. Returns what a person should know of it, in one line, if there is anything."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", SERVER_RETRIES if os.environ.get("PREFECT_API_URL") else EMBEDDED_RETRIES)
    _exempt_loopback()
    return _replace_home()


def _exempt_loopback() -> None:
    """A proxy never sees what our own processes say to each other: Prefect's embedded server, Ray, a local S3 server."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    exempt = [part.strip() for part in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if part.strip()]
    if "*" not in exempt:
        exempt += [name for name in LOOPBACK if name not in exempt]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(exempt)


def _replace_home() -> str | None:
    """A service's user may have no home folder, or none that it may write to: then a folder of our own takes its place."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and no entry of this user
        os.environ["HOME"] = str(own_folder())
        return f"no home folder: {own_folder()} is used"
    unset = [name for name in BELOW_HOME if name not in os.environ]
    if not unset or _may_write(home):
        return None
    for name in unset:
        os.environ[name] = str(own_folder() / BELOW_HOME[name])
    return f"the home folder {home} cannot be written to: {own_folder()} is used; HOME names another"


def _may_write(folder: Path) -> bool:
    """Tried, as permissions say little to root, and nothing of read-only mounts."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".deeplab-", dir=folder))
    except OSError:
        return False
    return True


def own_folder() -> Path:
    """This user's folder below the one for temporary files, which nobody else may enter."""
    folder = Path(tempfile.gettempdir()) / f"deeplab-of-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise OSError(f"{folder}: must be a folder of this user's alone (mode 700); remove it, or set TMPDIR")
    return folder
