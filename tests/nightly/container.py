"""A command in an image as the strictest cluster would run it: no privilege, no network, and nothing to write to but named folders.

The root is mounted read-only, so that HOME cannot be written; /tmp is Docker's --tmpfs: empty, in memory, no program
runs from it; /dev/shm has Docker's 64 MB.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# $1 is the root, $2 the user, $3 the working folder, $4 the folders as SOURCE:TARGET:ro or rw; the rest is the command.
ENTER = """
set -e
root=$1 user=$2 folder=$3 places=$4
shift 4
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount -t tmpfs -o mode=755 dev "$root/dev"
mkdir "$root/dev/shm"
mount -t tmpfs -o size=64m,mode=1777 shm "$root/dev/shm"
for device in null zero full random urandom; do touch "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"; done
ln -s /proc/self/fd "$root/dev/fd"
mount -t tmpfs -o mode=1777,noexec,nosuid,nodev tmp "$root/tmp"
for place in $places; do
    IFS=: read -r source target mode <<< "$place"
    mkdir -p "$root$target"
    mount --bind "$source" "$root$target"
    mount -o "remount,bind,$mode" "$root$target"
done
ip link set lo up
exec setpriv --no-new-privs chroot --userspec="$user" --groups= "$root" sh -c 'cd "$0" && exec "$@"' "$folder" "$@"
"""


@dataclass(frozen=True)
class Mount:
    """A folder of this machine, and where the command sees it: below /tmp, as nothing can be made elsewhere."""

    source: Path
    target: str
    writable: bool = False

    def __str__(self) -> str:
        return f"{self.source}:{self.target}:{'rw' if self.writable else 'ro'}"


@dataclass(frozen=True)
class Container:
    """An image's root folder with its configuration (Docker's `Config`), ready to run commands."""

    root: Path
    config: Mapping[str, Any]
    mounts: tuple[Mount, ...] = ()

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """The command behind the image's entry point, as its user (whose group has the same number) in its working folder.

        When it ends, whatever it started ends as well.
        """
        variables = [*self.config["Env"], "HOME=/home/deeplab", *(f"{name}={value}" for name, value in (environment or {}).items())]
        user, folder, places = self.config["User"], self.config["WorkingDir"], " ".join(map(str, self.mounts))
        return subprocess.run(
            [
                *("unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"),
                *("bash", "-c", ENTER, "enter", str(self.root), f"{user}:{user}", folder, places),
                *("env", "-i", *variables, *self.config["Entrypoint"], *command),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
