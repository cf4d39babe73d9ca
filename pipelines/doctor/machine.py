"""This machine: Python and packages, torch, instructions, native engine, GPU, cores, memory, /dev/shm, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path

from deeplab.errors import described
from pipelines.doctor.finding import Finding

PACKAGE = "deeplab-pipelines"
OLDEST_PYTHON = (3, 11)
# Ray's object store of a run on this machine (`cluster.connection`), which lies in /dev/shm.
SHARED_BYTES = 2 << 30
# Inventories, plans and Ray's logs; Ray also starts no more work on a disk that is over 95 % full.
DISK_BYTES, DISK_SHARE = 5 << 30, 0.95
INSTRUCTIONS = {
    "AVX2": "_is_avx2_supported",
    "AVX-512": "_is_avx512_supported",
    "VNNI": "_is_vnni_supported",
    "AVX-512 BF16": "_is_avx512_bf16_supported",
    "AMX": "_is_amx_tile_supported",
}


def size(count: float) -> str:
    """Bytes as people say them."""
    return f"{count / (1 << 30):.1f} GiB"


def python() -> Iterator[Finding]:
    version = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    if sys.version_info >= OLDEST_PYTHON:
        yield Finding("Python", "ok", version)
    else:
        yield Finding("Python", "failed", version, "nothing here runs with it", "install Python 3.11 or later")


def packages() -> Iterator[Finding]:
    """Whether the packages are installed that ours asks for, in the versions that it asks for."""
    from packaging.requirements import Requirement

    try:
        ours = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        yield Finding("packages", "note", f"{PACKAGE} runs from a folder and is not installed", "versions cannot be compared",
                      "pip install . in that folder")  # fmt: skip
        return
    wrong = []
    for line in ours.requires or ():
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            wrong.append((requirement, "missing"))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            wrong.append((requirement, version))
    if not wrong:
        yield Finding("packages", "ok", f"{PACKAGE} {ours.version} and all that it needs")
        return
    value = ", ".join(f"{requirement.name} {version}" for requirement, version in wrong)
    needed = " ".join(f"'{requirement.name}{requirement.specifier}'" for requirement, _ in wrong)
    yield Finding("packages", "failed", value, "commands that use them fail, or behave as nobody tested", f"pip install {needed}")


def torch() -> Iterator[Finding]:
    """torch, the instructions of the processor, and GPUs."""
    try:
        module = import_module("torch")
    except Exception as error:  # a library that is missing or built for another machine raises anything
        yield Finding("torch", "failed", described(error), "no network can run", "pip install torch")
        return
    yield Finding("torch", "ok", str(module.__version__))
    names = [name for name, asked in INSTRUCTIONS.items() if getattr(module.cpu, asked, bool)()]
    yield _instructions(names, platform.machine())
    yield _gpu(module)


def _instructions(names: list[str], machine: str) -> Finding:
    value = f"{platform.processor() or machine}: {', '.join(names) or 'none of ' + ', '.join(INSTRUCTIONS)}"
    if {"AMX", "AVX-512 BF16"} & set(names):
        return Finding("processor", "ok", value, "networks run in bfloat16 (--precision auto), about twice as fast as in float32")
    meaning = "networks run in float32, as this processor does not multiply in bfloat16"
    remedy = "nothing needs to be done; one with AVX-512 BF16 or AMX (AMD Zen 4, Intel Sapphire Rapids) is about twice as fast"
    return Finding("processor", "note", value, meaning, remedy)


def _gpu(module: object) -> Finding:
    cuda = module.cuda  # type: ignore[attr-defined]
    if cuda.is_available():
        gpus = [cuda.get_device_properties(index) for index in range(cuda.device_count())]
        value = ", ".join(f"{gpu.name} ({size(gpu.total_memory)})" for gpu in gpus)
        return Finding("GPU", "ok", value, "--device auto takes it: scores on the GPU, the CRF on all cores")
    if Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"):
        remedy = "compare the driver (nvidia-smi) with the CUDA of torch; in a container, start it with --gpus all"
        return Finding("GPU", "note", "there is one, and torch cannot use it", "work runs on the CPU", remedy)
    return Finding("GPU", "ok", "none", "work runs on the CPU")


def engine() -> Iterator[Finding]:
    """The compiled CRF."""
    try:
        builds = import_module("deeplab.crf._engine").builds
    except ImportError as error:
        remedy = "pip install . (needs a C++17 compiler), or a wheel for this Python; --no-crf works without it"
        yield Finding("CRF engine", "failed", described(error), "masks cannot be refined", remedy)
        return
    yield Finding("CRF engine", "ok", f"runs here as {builds[0]}")


def scoring_engine() -> Iterator[Finding]:
    """The compiled kernels for MobileNetV2 networks, without which torch computes them."""
    try:
        builds = import_module("deeplab.scoring.native._mobilenet").builds
    except ImportError as error:
        remedy = "pip install . (needs a C++17 compiler), or a wheel for this Python"
        yield Finding("scoring engine", "note", described(error), "torch scores, more slowly; no --precision int8", remedy)
        return
    best = dict(reversed(builds))  # they are listed best first
    yield Finding("scoring engine", "ok", ", ".join(f"{kind} as {name}" for kind, name in best.items()))


def memory() -> Iterator[Finding]:
    """Cores and memory, as this process may use them."""
    from deeplab.devices import available_cpus
    from pipelines.segment.parallelism import PROCESS_BYTES

    cores = available_cpus()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _cgroup_limit()
    bytes_ = min(total, limit or total)
    value = f"{cores} cores, {size(bytes_)}" + (" (limit of the container)" if limit and limit < total else "")
    # As Ray counts it: the object store is taken off.
    processes = int((bytes_ - min(SHARED_BYTES, bytes_ // 5)) / PROCESS_BYTES)
    if processes >= cores:
        yield Finding("cores, memory", "ok", value, f"{cores} images at a time")
    elif processes >= 1:
        meaning = f"{processes} images at a time, as a process takes up to {size(PROCESS_BYTES)}; the other cores wait"
        yield Finding("cores, memory", "note", value, meaning, "more memory would use all cores")
    else:
        meaning = f"a process that segments takes up to {size(PROCESS_BYTES)}, so the system may kill it"
        yield Finding("cores, memory", "failed", value, meaning, "use a machine or a container with 4 GiB or more")


def _cgroup_limit() -> int | None:
    """The memory that a container may use; None without a limit."""
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def shared_memory(place: str = "/dev/shm") -> Iterator[Finding]:
    if not sys.platform.startswith("linux"):
        return
    try:
        usage = shutil.disk_usage(place)
    except OSError as error:
        yield Finding(
            place, "note", described(error), "Ray keeps its objects on the disk, which is slow", f"mount a tmpfs on {place}"
        )
        return
    needed = min(SHARED_BYTES, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 5)
    value = f"{size(usage.free)} free of {size(usage.total)}"
    if usage.free >= needed:
        yield Finding(place, "ok", value)
    else:
        meaning = f"Ray keeps up to {size(needed)} there, and takes the disk instead, which is slow"
        yield Finding(place, "note", value, meaning, "docker run --shm-size=3g; else free it, or mount a larger tmpfs")


def disk() -> Iterator[Finding]:
    """The folder for temporary files."""
    folder = tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    value, share = f"{folder}: {size(usage.free)} free of {size(usage.total)}", usage.used / max(usage.total, 1)
    remedy = "free some, or set TMPDIR (and RAY_TMPDIR) to a folder of a larger disk"
    try:
        os.rmdir(tempfile.mkdtemp(prefix="deeplab-doctor-"))
    except OSError as error:
        yield Finding("temporary files", "failed", described(error), "a run cannot keep its plan", remedy)
        return
    if share > DISK_SHARE:
        yield Finding("temporary files", "note", value, "Ray warns and may stop work on a disk that is over 95 % full", remedy)
    elif usage.free < DISK_BYTES:
        yield Finding("temporary files", "note", value, "plans of large archives and Ray's logs may not fit", remedy)
    else:
        yield Finding("temporary files", "ok", value)


CHECKS = {
    "Python": python,
    "packages": packages,
    "torch": torch,
    "CRF engine": engine,
    "scoring engine": scoring_engine,
    "cores, memory": memory,
    "/dev/shm": shared_memory,
    "temporary files": disk,
}
