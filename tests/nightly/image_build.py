"""Building infra/Dockerfile without a container registry or a daemon: Debian's packages make the base, buildah does the steps."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "infra" / "Dockerfile"
APT_SOURCES = Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")
# What the image python:3.11-slim-bookworm promises, from Debian: python, pip, venv, headers, certificates, time zones.
PYTHON_PACKAGES = "python{0}-venv,python{0}-dev,python3-pip,ca-certificates,netbase,tzdata"
# And as in Docker's images of Debian, apt keeps no index of packages in its cache.
APT_CONF = 'Dir::Cache::pkgcache ""; Dir::Cache::srcpkgcache "";\n'
PIP_CONF = "/etc/pip.conf"


@dataclass(frozen=True)
class Layer:
    """A layer of an image: its size in bytes and the step that made it."""

    size: int
    step: str


def base_name(dockerfile: str) -> str:
    """The one image that all stages begin from, such as python:3.11-slim-bookworm."""
    values = dict(re.findall(r"^ARG (\w+)=(\S+)$", dockerfile, re.M))
    stages = re.findall(r"^FROM (\S+)(?: AS (\S+))?$", dockerfile, re.M)
    bases = {re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], base) for base, _ in stages}
    (name,) = bases - {stage for _, stage in stages}
    return name


def pip_settings() -> dict[str, str]:
    """pip's settings on this machine, by key; a variable of the environment is ahead of a file, as in pip."""
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True).stdout
    lines = [re.fullmatch(r"(:env:|global|install)\.([\w-]+)=(.*)", line) for line in listed.splitlines()]
    settings = [(match[1] == ":env:", match[2], str(ast.literal_eval(match[3]))) for match in lines if match]
    return {key: value for _, key, value in sorted(settings, key=lambda each: each[0])}


def local_places(settings: Mapping[str, str]) -> Iterator[Path]:
    """Files and folders of this machine that pip's settings name. An index in files refers to its neighbours."""
    for word in " ".join(settings.values()).split():
        place = Path(word.removeprefix("file://"))
        if place.is_absolute() and place.exists():
            yield place.parent if word.startswith("file://") else place


class Images:
    """Images and containers in a folder of their own, which `remove` empties."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.options = ["--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", "overlay"]

    def buildah(self, *arguments: str | Path) -> str:
        return subprocess.run(["buildah", *self.options, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def make_base(self, name: str) -> None:
        """An image of that name out of Debian's packages, python and pip being on the PATH as in Docker's."""
        match = re.fullmatch(r"python:(3\.\d+)-slim-(\w+)", name)
        assert match, f"{name}: no image that Debian's packages can stand in for"
        python, suite = match[1], match[2]
        tar = self.folder / "base.tar"
        sources = [path for path in APT_SOURCES if path.exists() and suite in path.read_text()][:1]
        include = f"--include={PYTHON_PACKAGES.format(python)}"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", include, suite, tar, *sources], check=True)
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, tar, "/")
        tar.unlink()
        root = Path(self.buildah("mount", container))
        for link, target in {"python": f"python{python}", "python3": f"python{python}", "pip": "pip3"}.items():
            (root / "usr" / "local" / "bin" / link).symlink_to(f"/usr/bin/{target}")
        (root / "etc" / "apt" / "apt.conf.d" / "docker-clean").write_text(APT_CONF)
        self.buildah("config", "--env", "PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin", container)
        self.buildah("config", "--created-by", f"stand-in for {name}", container)
        self.buildah("commit", "--quiet", "--rm", "--format", "docker", container, name)

    def build(self, tag: str, arguments: list[str], log: Path) -> None:
        """The Dockerfile's steps. pip is configured as on this machine, by files that are mounted and enter no layer."""
        settings = pip_settings()
        conf = self.folder / "pip.conf"
        conf.write_text("[global]\n" + "".join(f"{key} = {' '.join(value.split())}\n" for key, value in settings.items()))
        mounts = {str(conf): PIP_CONF} | {str(place): str(place) for place in local_places(settings)}
        command: list[str | Path] = [
            *(
                "buildah",
                *self.options,
                "bud",
                "--isolation",
                "chroot",
                "--network",
                "host",
                "--format",
                "docker",
                "--pull-never",
                "--layers",
            ),
            *(word for source, target in mounts.items() for word in ("-v", f"{source}:{target}:ro")),
            *(word for argument in arguments for word in ("--build-arg", argument)),
            *("-f", DOCKERFILE, "-t", tag, ROOT),
        ]
        with log.open("w") as out:
            subprocess.run(command, check=True, stdout=out, stderr=subprocess.STDOUT)

    def describe(self, tag: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self.buildah("inspect", "--type", "image", tag))["Docker"]
        return described

    def layers(self, tag: str) -> list[Layer]:
        """From the base up; steps that change no file have no layer."""
        image = self.describe(tag)
        stored = json.loads((self.folder / "images" / "overlay-layers" / "layers.json").read_text())
        sizes = {layer["diff-digest"]: layer["diff-size"] for layer in stored if "diff-digest" in layer}
        steps = [entry.get("created_by", "") for entry in image["history"] if not entry.get("empty_layer")]
        return [Layer(sizes[digest], step) for digest, step in zip(image["rootfs"]["diff_ids"], steps, strict=True)]

    def remove(self) -> None:
        """All containers and images; nothing stays mounted, so that the folder can be removed."""
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        places = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for place in reversed([place for place in places if Path(place).is_relative_to(self.folder.resolve())]):
            subprocess.run(["umount", place], check=True)
