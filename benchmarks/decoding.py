"""JPEG decoders compared: milliseconds per photo on one core, and what each does with odd files.

    python benchmarks/decoding.py [--photos FOLDER] [--odd FOLDER] [--rounds 9]

Ours is `deeplab.images.decoding.decode` (Pillow). Those of torchvision, OpenCV, PyTurboJPEG, simplejpeg and pyvips are measured
if they are installed; the package needs none of them. Each returns H x W x 3 uint8 RGB. They take turns photo by photo; a figure
is the median of the rounds, in CPU time of this thread. `--odd`: a folder with manifest.tsv (file, ..., expected); a decoder
agrees on a file if it refuses a file to be refused, or accepts one to be accepted with our size.
pip install opencv-python-headless pyturbojpeg simplejpeg pyvips-binary pyvips installs the others.
"""

from __future__ import annotations

import argparse
import csv
import os
import resource
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from deeplab.images.decoding import decode

EXAMPLES = Path(__file__).parents[1] / "examples" / "pets" / "images"
ADDRESS_SPACE = 16 << 30  # for a file that swells
Decoder = Callable[[bytes], np.ndarray]


def torchvision() -> Decoder:
    from torchvision.io import ImageReadMode, decode_image

    def decoder(data: bytes) -> np.ndarray:
        raw = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        pixels = decode_image(raw, ImageReadMode.RGB, apply_exif_orientation=True).permute(1, 2, 0).contiguous()
        return np.asarray(pixels.numpy())

    return decoder


def opencv() -> Decoder:
    import cv2

    cv2.setNumThreads(1)
    return lambda data: cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def pyturbojpeg() -> Decoder:
    from turbojpeg import TJPF_RGB, TurboJPEG

    turbo = TurboJPEG()
    return lambda data: turbo.decode(data, TJPF_RGB)


def simple() -> Decoder:
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def vips() -> Decoder:
    import pyvips

    pyvips.voperation.cache_set_max(0)

    def decoder(data: bytes) -> np.ndarray:
        image = pyvips.Image.new_from_buffer(data, "", access="sequential").autorot().colourspace("srgb")
        return np.asarray((image.flatten(background=255) if image.hasalpha() else image).numpy())

    return decoder


MAKERS: dict[str, Callable[[], Decoder]] = {
    "ours (Pillow)": lambda: decode,
    "torchvision.io": torchvision,
    "OpenCV": opencv,
    "PyTurboJPEG": pyturbojpeg,
    "simplejpeg": simple,
    "pyvips": vips,
}


def verdict(make: Callable[[], Decoder], data: bytes, accepted: bool) -> str:
    """What a decoder does with an odd file, in a separate process: "agrees", "differs", or "dies"."""
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        decoder = make()
        try:
            pixels = decoder(data)
            same = accepted and pixels.shape == decode(data).shape
        except Exception:  # each library has its own
            same = not accepted
        os._exit(0 if same else 1)
    status = os.waitpid(child, 0)[1]
    return "dies" if os.WIFSIGNALED(status) else "differs" if os.waitstatus_to_exitcode(status) else "agrees"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=EXAMPLES)
    parser.add_argument("--odd", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    photos = [path.read_bytes() for path in sorted(arguments.photos.glob("*.jpg"))]
    files = []
    if arguments.odd is not None:
        with (arguments.odd / "manifest.tsv").open(newline="") as stream:
            files = [(arguments.odd / row["file"], row["expected"] == "ok") for row in csv.DictReader(stream, delimiter="\t")]
    # Before this process uses any of them: their threads would not survive a fork.
    odd = {name: Counter(verdict(make, path.read_bytes(), accepted) for path, accepted in files) for name, make in MAKERS.items()}
    decoders: dict[str, Decoder] = {}
    for name, make in MAKERS.items():
        try:
            decoders[name] = make()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{name}: not installed ({error})")
    spent: dict[str, list[float]] = defaultdict(list)
    for _ in range(arguments.rounds):
        total = dict.fromkeys(decoders, 0.0)
        for data in photos:
            for name, decoder in decoders.items():
                start = time.thread_time()
                decoder(data)
                total[name] += time.thread_time() - start
        for name, seconds in total.items():
            spent[name].append(seconds / len(photos))
    ours = decode(photos[0]).astype(int)
    print(f"{len(photos)} photos, one core, {len(files)} odd files")
    for name, decoder in decoders.items():
        apart = np.abs(decoder(photos[0]).astype(int) - ours)
        verdicts = f"; odd files: differs on {odd[name]['differs']}, dies on {odd[name]['dies']} of {len(files)}" if files else ""
        print(
            f"{name:16} {1000 * statistics.median(spent[name]):6.2f} ms, grey levels apart {apart.mean():.2f}{verdicts}", flush=True
        )


if __name__ == "__main__":
    main()
