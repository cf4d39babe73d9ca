"""Environment of every command that uses Prefect; to be set before Prefect is imported. What is set already stays."""

from __future__ import annotations

import os

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


def prepare() -> None:
    """Set what is not set."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_CLIENT_MAX_RETRIES", SERVER_RETRIES if os.environ.get("PREFECT_API_URL") else EMBEDDED_RETRIES)
