"""Training crops a second and core: files to batches, against torchvision's v2 transforms in the same DataLoader.

    python benchmarks/loading.py [--dataset FOLDER] [--crops 400] [--rounds 7]

Photos of 500 x 375 (JPEG, labels as PNG) are read, decoded, scaled by 0.5 to 1.5, cropped to 321 and mirrored; the second half of
the table also changes brightness, contrast and saturation by up to 30 %. Labels are scaled to the nearest pixel, what lies beyond
the image is mean colour and label 255. Every way loads batches of 8 in one loader process of one thread; they take turns. A figure
is the median of the rounds, in CPU seconds of the loader process and of the receiver, start and end included.

* ours: deeplab's data set, augmentation and batches, which are uint8 until they are on the device.
* ours, normalised: the same, and the receiver normalises each batch on the CPU, as the training step does there.
* torchvision, tensors: `decode_image` and v2 transforms on uint8 tensors, then float and normalised: its fastest way.
* torchvision, PIL: `Image.open` and the same v2 transforms on PIL images, as its reference training has it by default.

The last lines are the parts of ours, in one process.
"""

from __future__ import annotations

import argparse
import io
import resource
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from measure import machine
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from deeplab.data.augmentation import Augmentation
from deeplab.data.datasets import LabelledFolder
from deeplab.networks.network import Normalization
from deeplab.training.loading import batches_of
from deeplab.training.presets import TrainingConfig
from deeplab.training.sampling import Samples, Shares

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "pets"
SIZE, CROP, BATCH = (500, 375), 321, 8
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5)
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


class RandomScale(v2.Transform):
    """Both sides times one of SCALES; torchvision's own random sizes are of the shorter side."""

    def make_params(self, flat_inputs: list[object]) -> dict[str, object]:
        height, width = v2.functional.get_size(flat_inputs[0])
        factor = SCALES[int(torch.randint(len(SCALES), ()))]
        return {"size": [round(height * factor), round(width * factor)]}

    def transform(self, inpt: object, params: dict[str, object]) -> object:
        return self._call_kernel(v2.functional.resize, inpt, antialias=True, **params)


class Torchvision(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Crops as torchvision's references/segmentation makes them."""

    def __init__(self, data: LabelledFolder, colour: float, tensors: bool) -> None:
        self.root, self.images, self.labels, self.tensors = Path(str(data.files)), data.images, data.labels, tensors
        mean = tuple(round(255 * level) for level in MEAN)
        fill = {tv_tensors.Image: mean, Image.Image: mean, tv_tensors.Mask: 255}
        steps = [RandomScale(), v2.RandomCrop(CROP, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip()]
        if colour:
            steps.append(v2.ColorJitter(colour, colour, colour))
        types = {tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}
        self.transforms = v2.Compose([*steps, v2.ToImage(), v2.ToDtype(types, scale=True), v2.Normalize(MEAN, DEVIATION)])

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, labels = (str(self.root / names[number % len(names)]) for names in (self.images, self.labels))
        if self.tensors:
            pair = tv_tensors.Image(decode_image(image, ImageReadMode.RGB)), decode_image(labels, ImageReadMode.UNCHANGED)[0]
        else:
            pair = Image.open(image).convert("RGB"), torch.from_numpy(np.array(Image.open(labels)))
        crop, classes = self.transforms(pair[0], tv_tensors.Mask(pair[1]))
        return crop, classes


def ours(data: LabelledFolder, colour: float, start: int, count: int) -> Batches:
    config = TrainingConfig("loading", "none", steps=1 << 20, batch_size=BATCH, crop=CROP)
    augment = Augmentation(CROP, SCALES, tuple(255 * level for level in MEAN), colour=colour)
    shares = Shares(BATCH, start // BATCH, (start + count) // BATCH)
    return batches_of(Samples(data, augment, config), shares, 1, CPU)


def theirs(data: LabelledFolder, colour: float, tensors: bool, start: int, count: int) -> Batches:
    numbers = [list(range(first, first + BATCH)) for first in range(start, start + count, BATCH)]
    return iter(DataLoader(Torchvision(data, colour, tensors), batch_sampler=numbers, num_workers=1))


def spent(batches: Callable[[], Batches], use: Callable[[torch.Tensor], object]) -> float:
    """CPU seconds of this process and of the loader process that it starts and ends."""

    def now() -> float:
        parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(part.ru_utime + part.ru_stime for part in parts)

    before, crops = now(), 0
    for images, labels in batches():
        use(images)
        crops += len(labels)
    return (now() - before) / crops


def parts(data: LabelledFolder, rounds: int) -> dict[str, float]:
    """CPU milliseconds a crop of the parts of ours, which take turns; the augmentation is that of its scale, without colour."""
    encoded = [data.encoded(index) for index in range(len(data))]
    pairs = [data.decode_picture(index, *files) for index, files in enumerate(encoded)]
    pad = tuple(255 * level for level in MEAN)
    work: dict[str, Callable[[int], object]] = {
        "read both files": data.encoded,
        "decode JPEG": lambda k: Image.open(io.BytesIO(encoded[k][0])).load(),
        "decode image and labels, check": lambda k: data.decode_picture(k, *encoded[k]),
    }
    for scale in SCALES:
        augment = Augmentation(CROP, (scale,), pad)
        work[f"scale {scale}, crop, mirror"] = lambda k, augment=augment: augment(*pairs[k], np.random.default_rng(k))  # type: ignore[misc]
    augment = Augmentation(CROP, (1.0,), pad, colour=0.3)
    work["crop, mirror, colour"] = lambda k: augment(*pairs[k], np.random.default_rng(k))
    classes = Augmentation(CROP, (1.0,), pad, class_crops=1.0)
    work["crop around a class, mirror"] = lambda k: classes(*pairs[k], np.random.default_rng(k))
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for name, step in work.items():
            start = time.thread_time()
            for index in range(len(data)):
                step(index)
            times[name].append(1000 * (time.thread_time() - start) / len(data))
    return {name: statistics.median(values) for name, values in times.items()}


def same_size(data: LabelledFolder, folder: Path) -> LabelledFolder:
    """The pairs of SIZE; those of the example photos, which are smaller, enlarged to it."""
    sizes = {index: Image.open(io.BytesIO(data.encoded(index)[0])).size for index in range(len(data))}
    fitting = [index for index, size in sizes.items() if size == SIZE]
    if fitting:
        return data.without([stem for index, stem in enumerate(data.stems) if index not in set(fitting)])
    for name in ("images", "labels"):
        (folder / name).mkdir()
    for index, stem in enumerate(data.stems):
        image, labels = data[index]
        Image.fromarray(image).resize(SIZE, Image.Resampling.LANCZOS).save(folder / "images" / f"{stem}.jpg", quality=95)
        Image.fromarray(labels).resize(SIZE, Image.Resampling.NEAREST).save(folder / "labels" / f"{stem}.png")
    (folder / "classes.txt").write_text("\n".join(data.classes) + "\n")
    (folder / "train.txt").write_text("\n".join(data.stems) + "\n")
    return LabelledFolder(folder, "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=EXAMPLES)
    parser.add_argument("--crops", type=int, default=400, help="per round, a multiple of 8")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    normalization = Normalization("RGB", tuple(255 * level for level in MEAN), tuple(255 * level for level in DEVIATION))

    def normalise(images: torch.Tensor) -> torch.Tensor:
        return normalization.apply(images).contiguous(memory_format=torch.channels_last)

    def nothing(images: torch.Tensor) -> None:
        pass

    with tempfile.TemporaryDirectory() as folder:
        data = same_size(LabelledFolder(arguments.dataset, "train"), Path(folder))
        kilobytes = statistics.mean(len(data.encoded(index)[0]) for index in range(len(data))) / 1000
        print(f"{machine()}: {len(data)} photos of {SIZE[0]} x {SIZE[1]}, {kilobytes:.0f} KB each, crops of {CROP}")
        for colour in (0.0, 0.3):
            ways: dict[str, tuple[Callable[[int, int], Batches], Callable[[torch.Tensor], object]]] = {
                "ours": (partial(ours, data, colour), nothing),
                "ours, normalised": (partial(ours, data, colour), normalise),
                "torchvision, tensors": (partial(theirs, data, colour, True), nothing),
                "torchvision, PIL": (partial(theirs, data, colour, False), nothing),
            }
            seconds: dict[str, list[float]] = defaultdict(list)
            for turn in range(arguments.rounds):
                for name, (batches, use) in ways.items():
                    seconds[name].append(spent(partial(batches, turn * arguments.crops, arguments.crops), use))
            print("with colour" if colour else "scale, crop, mirror")
            medians = {name: statistics.median(values) for name, values in seconds.items()}
            for name, median in medians.items():
                ratio = statistics.median(other / own for other, own in zip(seconds[name], seconds["ours"], strict=True))
                print(f"  {name:22} {1 / median:6.0f} crops/s and core, {1000 * median:5.2f} ms, {ratio:.2f} times ours")
        for name, milliseconds in parts(data, arguments.rounds).items():
            print(f"  {name:32} {milliseconds:5.2f} ms")


if __name__ == "__main__":
    main()
