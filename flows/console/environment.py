"""Environment of every command, set before Prefect or Ray is imported. Variables that are set already are kept."""

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
    # No telemetry.
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Heartbeat of every served run; the automation of `deeplab setup-prefect` finds dead runs by it.
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
}
# A server that restarts is away for a minute or two; runs wait that long: 2 + 4 + ... + 64 s. The embedded one never comes back.
SERVER_RETRIES, EMBEDDED_RETRIES = "6", "2"
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
# Variables for what libraries write below the home folder, and our subfolder for each when that cannot be written.
BELOW_HOME = {
    "PREFECT_HOME": "prefect",
    "XDG_CACHE_HOME": "cache",
    "XDG_STATE_HOME": "state",
    "MPLCONFIGDIR": "matplotlib",
    "HF_HOME": "huggingface",
}


def prepare() -> str | None:
    """Set the variables that are not set. Returns one line for the user if another folder replaces the home folder."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", SERVER_RETRIES if os.environ.get("PREFECT_API_URL") else EMBEDDED_RETRIES)
    _exempt_loopback()
    return _replace_home()


def _exempt_loopback() -> None:
    """Keep traffic between our own processes off a proxy: Prefect's embedded server, Ray, a local S3 server."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in PROXIES):
        return
    exempt = [part.strip() for part in (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",") if part.strip()]
    if "*" not in exempt:
        exempt += [name for name in LOOPBACK if name not in exempt]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(exempt)


def _replace_home() -> str | None:
    """Use a folder of our own if there is no home folder, or none that can be written, as for a service's user."""
    try:
        home = Path.home()
    except RuntimeError:  # HOME is not set, and the user is not in the password database
        os.environ["HOME"] = str(own_folder())
        return f"no home folder: using {own_folder()}"
    unset = [name for name in BELOW_HOME if name not in os.environ]
    if not unset or _may_write(home):
        return None
    for name in unset:
        os.environ[name] = str(own_folder() / BELOW_HOME[name])
    return f"the home folder {home} cannot be written: using {own_folder()}; set HOME to name another"


def _may_write(folder: Path) -> bool:
    """Whether a folder can be written: tried, as permission bits say little for root and nothing about read-only mounts."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".deeplab-", dir=folder))
    except OSError:
        return False
    return True


def own_folder() -> Path:
    """This user's folder below the one for temporary files; only this user may enter it. OSError if it is anything else."""
    folder = Path(tempfile.gettempdir()) / f"deeplab-of-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise OSError(f"{folder}: must be a folder that only this user may enter (mode 700); remove it, or set TMPDIR")
    return folder
