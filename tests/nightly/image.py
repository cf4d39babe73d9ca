"""The container image, built once for real and used as the strictest cluster would: `make image`.

Needs root, buildah and mmdebstrap (Debian has both), 20 GB of disk and the package indices; takes 20 minutes or more. Neither a
container registry nor a daemon: a bare Debian with its python stands in for the base image, and buildah does the steps of
infra/Dockerfile on it. Then three photos are segmented as the image's user without a network, with a read-only root and a HOME
that cannot be written; then come the other roles. The layers are listed with their sizes. Nothing stays but what build/image/ has:
masks, report page, table of layers. Exit code 0, 1 where a step failed, 2 where a program is missing.

    python -m tests.nightly.image --build-arg TORCH_INDEX=https://index.example/simple --build-arg TORCH=torch==2.13.0
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from deeplab.classes import VOC
from tests.nightly.container import Container, Mount
from tests.nightly.image_build import DOCKERFILE, ROOT, Images, base_name

STATE = ROOT / "build" / "image"
# Photos, and what the bundled model must see in each of them, on at least a twentieth of it.
PHOTOS = {"cat.jpg": "cat", "dog.jpg": "dog", "horses.jpg": "horse"}
PROGRAMS = {"buildah": "buildah", "mmdebstrap": "mmdebstrap", "unshare": "util-linux", "setpriv": "util-linux", "ip": "iproute2"}
# Of every Debian: C, C++ and zlib, which dpkg and apt need.
ALWAYS = {"libc6", "libgcc-s1", "libstdc++6", "zlib1g"}
RAY = "ray start --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1"
PREFECT = "prefect server start --host 127.0.0.1 --port 4200"
HEALTHY = "python -c 'import urllib.request as r; r.urlopen(\"http://127.0.0.1:4200/api/health\", timeout=5)' 2>/dev/null"
DISK = 20e9  # bytes
TAG = "localhost/deeplab:drill"
STATE_OF_PREFECT = "/home/deeplab/.prefect"

started = time.monotonic()


def tell(text: str) -> None:
    print(f"{time.monotonic() - started:7.1f} s  {text}", flush=True)


def missing(folder: Path) -> list[str]:
    """What to change, in words."""
    wants = [f"{program} (apt-get install {package})" for program, package in PROGRAMS.items() if not shutil.which(program)]
    if os.getuid():
        wants.append("root")
    if (free := shutil.disk_usage(folder).free) < DISK:
        wants.append(f"{DISK / 1e9:.0f} GB at {folder}, where {free / 1e9:.0f} GB are free (TMPDIR names another place)")
    return wants


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB"


def list_layers(images: Images) -> None:
    layers = images.layers(TAG)
    lines = [f"{megabytes(layer.size):>10}  {' '.join(layer.step.split())[:150]}" for layer in layers]
    lines.append(f"{megabytes(sum(layer.size for layer in layers)):>10}  in all, {len(layers)} layers")
    (STATE / "layers.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def list_packages(root: Path) -> None:
    """The largest folders of the installed packages: what one would have to leave out for a smaller image."""
    (library,) = (root / "opt" / "deeplab" / "lib").glob("python3*/site-packages")
    sizes = {
        folder.name: sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
        for folder in library.iterdir()
        if folder.is_dir()
    }
    largest = sorted(sizes.items(), key=lambda each: -each[1])[:8]
    tell("largest packages: " + ", ".join(f"{name} {megabytes(size)}" for name, size in largest))


def check(container: Container, *command: str) -> str:
    """Run a command that must end with exit code 0; what it wrote."""
    since = time.monotonic()
    done = container.run(*command)
    output = done.stdout + done.stderr
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{output[-4000:]}"
    assert "Traceback" not in output, output[-4000:]
    tell(f"{' '.join(command)[:110]}: exit code 0, {time.monotonic() - since:.1f} s")
    return done.stdout


def check_libraries(container: Container) -> None:
    """What the packages take from the system comes with every Debian, or the Dockerfile installs it; the base may not have more."""
    script = (
        f"find /opt/deeplab -name '*.so*' -type f | xargs -n 50 ldd 2>/dev/null | awk '$3 ~ /^{chr(92)}//{{print $3}}' | sort -u"
    )
    libraries = [path for path in check(container, "sh", "-c", script).split() if not path.startswith("/opt/deeplab/")]
    names = [f"*/{Path(path).name}" for path in libraries]
    packages = {line.split(":")[0] for line in check(container, "dpkg-query", "-S", *names).splitlines()}
    installed = set(re.findall(r"[\w.+-]+", " ".join(re.findall(r"--no-install-recommends (.*?) &&", DOCKERFILE.read_text()))))
    assert packages <= ALWAYS | installed, f"the Dockerfile installs no {', '.join(packages - ALWAYS - installed)}"
    tell(f"libraries of Debian that are used: {', '.join(sorted(packages))}")


def check_servers(container: Container) -> None:
    """The roles that listen: a Ray head, and a Prefect server with its state in a volume."""
    check(container, "sh", "-c", f"{RAY} && ray health-check --address 127.0.0.1:6379 && ray status && ray stop")
    check(container, "sh", "-c", f"{PREFECT} & for try in $(seq 300); do {HEALTHY} && exit 0; sleep 1; done; exit 1")


def look_at_masks(folder: Path) -> None:
    for photo, name in PHOTOS.items():
        with Image.open(folder / photo.replace(".jpg", ".png")) as mask, Image.open(ROOT / "examples" / "photos" / photo) as image:
            assert mask.size == image.size, f"{photo}: {mask.size}, {image.size}"
            share = float(np.mean(np.asarray(mask) == VOC.names.index(name)))
        assert share >= 0.05, f"{photo}: {share:.1%} {name}"
        tell(f"{photo}: {share:.0%} {name}")


def use(root: Path, images: Images) -> None:
    """Every role of the image, as its own user who may write to /tmp and to the results alone."""
    photos, results, volume = (images.folder / name for name in ("photos", "results", "volume"))
    for folder in (photos, results, volume):
        folder.mkdir()
    for name in PHOTOS:
        shutil.copy(ROOT / "examples" / "photos" / name, photos)
    config = images.describe(TAG)["config"]
    user = int(config["User"])
    os.chown(results, user, user)
    owner = (root / STATE_OF_PREFECT.lstrip("/")).stat()  # a new volume gets the owner of the folder below it
    os.chown(volume, owner.st_uid, owner.st_gid)
    container = Container(root, config, (Mount(photos, "/tmp/photos"), Mount(results, "/tmp/results", writable=True)))
    server = Container(root, config, (Mount(volume, STATE_OF_PREFECT, writable=True),))

    for place in ("/home/deeplab/x", "/opt/deeplab/x", "/x", "/tmp/photos/x"):
        assert container.run("touch", place).returncode, f"{place} could be written"
    assert check(container, "id", "-u").strip() == str(user) != "0"
    check(container, *config["Healthcheck"]["Test"][1:])
    check(container, "python", "-c", "import rasterio, imagecodecs, pillow_heif, pycocotools")
    check(container, *config["Cmd"])
    check_libraries(container)

    summary = json.loads(check(container, "deeplab", "segment", "/tmp/photos", "/tmp/results/table", "--json"))
    assert (summary["images"], summary["errors"]) == (len(PHOTOS), 0), summary
    check(container, "deeplab", "verify", "/tmp/results/table", "--archive", "/tmp/photos")
    check(container, "deeplab", "export", "/tmp/results/table", "/tmp/results/masks")
    look_at_masks(results / "masks")
    check(container, "deeplab", "show", "/tmp/results/table", "-o", "/tmp/results/sheet.png")
    check(container, "deeplab", "report", "/tmp/results/table", "-o", "/tmp/results/report")
    check(container, "deeplab", "run", "segment", "/tmp/photos", "/tmp/results/flow")
    check(container, "deeplab", "doctor", "/tmp/photos", "/tmp/results/table")
    check_servers(server)
    shutil.copytree(results, STATE / "results", dirs_exist_ok=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="an argument of the Dockerfile")
    arguments = parser.parse_args()
    if wants := missing(Path(tempfile.gettempdir())):
        print("make image needs", ", ".join(wants), file=sys.stderr)
        return 2
    shutil.rmtree(STATE, ignore_errors=True)
    STATE.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="deeplab-image-") as folder:
        images = Images(Path(folder))
        try:
            base = base_name(DOCKERFILE.read_text())
            images.make_base(base)
            tell(f"a bare Debian with python in place of {base}")
            images.build(TAG, arguments.build_arg, STATE / "build.log")
            tell(f"built {DOCKERFILE.relative_to(ROOT)}")
            list_layers(images)
            root = Path(images.buildah("mount", images.buildah("from", "--pull-never", TAG)))
            list_packages(root)
            use(root, images)
        except (AssertionError, subprocess.CalledProcessError) as error:
            tell(f"FAILED: {error}")
            return 1
        finally:
            images.remove()
    tell("nothing is left but build/image/")
    return 0


if __name__ == "__main__":
    sys.exit(main())
