"""The layouts of known data sets: each lists the pairs of a split and maps label values to classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from deeplab import text_lists
from deeplab.classes import CITYSCAPES, IGNORE, VOC
from deeplab.errors import UserError
from deeplab.files import Files
from deeplab.images.decoding import EXTENSIONS
from deeplab.safe_names import stem


class DatasetError(UserError):
    """The data set cannot be used; the message names the file and what is accepted."""


@dataclass(frozen=True)
class Listing:
    """One split: `pairs` of (stem, image, labels) names; `values`: label value -> class id, None if they are the same."""

    classes: list[str]
    pairs: list[tuple[str, str, str]]
    values: dict[int, int] | None = None


@dataclass(frozen=True)
class Layout:
    """`marks`: files or folders that identify a data set of this layout."""

    name: str
    marks: tuple[str, ...]
    read: Callable[[Files, str], Listing]


def read(files: Files, split: str, layout: str = "auto") -> Listing:
    """List a split in the named layout, or in the first that fits ("auto"). Raises DatasetError if none fits."""
    if layout == "auto":
        for candidate in LAYOUTS:
            if all(files.has(mark) for mark in candidate.marks):
                return candidate.read(files, split)
        if not files.has(""):
            raise DatasetError(f"{files}: no such folder; a data set has images/, labels/, classes.txt and SPLIT.txt")
        return _plain(files, split)
    by_name = {candidate.name: candidate for candidate in LAYOUTS}
    if layout not in by_name:
        raise DatasetError(f"layout {layout!r}: auto, {', '.join(by_name)} are accepted")
    return by_name[layout].read(files, split)


def lines(files: Files, name: str, splits: Callable[[], list[str]]) -> list[str]:
    """The non-empty lines of a text file; `splits` lists the available splits for the error message."""
    try:
        return [line for _, line in text_lists.lines(files.read(name), f"{files}/{name}")]
    except text_lists.ListError as error:
        raise DatasetError(str(error)) from error
    except OSError as error:
        available = ", ".join(sorted(splits())) or "none"
        raise DatasetError(f"{files}/{name}: cannot be read ({error.strerror or error}); splits here: {available}") from error


def _splits(files: Files, folder: str = "") -> list[str]:
    return [name[:-4] for name in files.names(folder) if name.endswith(".txt") and "/" not in name and name != "classes.txt"]


def _plain(files: Files, split: str) -> Listing:
    """Ours: images/STEM.*, labels/STEM.png, classes.txt (line k names class k) and one list of stems per split."""
    classes = lines(files, "classes.txt", lambda: _splits(files))
    stems = lines(files, f"{split}.txt", lambda: _splits(files))
    if not stems:
        raise DatasetError(f"{files}/{split}.txt: lists no images")
    images = _by_stem(files, "images", set(stems))
    missing = [stem for stem in stems if stem not in images]
    if missing:
        raise DatasetError(f"{files}/images: no image for {', '.join(missing[:5])} ({len(missing)} of {len(stems)})")
    return Listing(classes, [(name, f"images/{images[name]}", f"labels/{name}.png") for name in stems])


def _by_stem(files: Files, folder: str, stems: set[str] | None = None) -> dict[str, str]:
    """Stem -> name of its image below a folder, for `stems` or all. Raises DatasetError for two images with one stem."""
    images: dict[str, str] = {}
    for name in files.names(folder):
        if PurePosixPath(name).suffix.lower() not in EXTENSIONS or (stems is not None and stem(name) not in stems):
            continue
        if other := images.get(stem(name)):
            raise DatasetError(f"{files}/{folder}: {other} and {name} are two images for one label file; keep one of them")
        images[stem(name)] = name
    return images


def _listed_pairs(files: Files, folder: str, split: str, labels: str) -> list[tuple[str, str, str]]:
    """Pairs of a VOC-like list: a line is a stem, or the names of an image and its labels as in the DeepLab releases."""
    pairs = []
    for line in lines(files, f"{folder}/{split}.txt", lambda: _splits(files, folder)):
        parts = line.split()
        if len(parts) == 2 and "/" in line:
            image, label = (part.lstrip("/") for part in parts)
            pairs.append((stem(image).rsplit("/", 1)[-1], image, label))
        else:
            pairs.append((parts[0], f"JPEGImages/{parts[0]}.jpg", f"{labels}/{parts[0]}.png"))
    return pairs


def _voc(files: Files, split: str) -> Listing:
    """VOC 2012, with SBD's labels for the augmented lists; unlike SBD's own train, these contain no image of VOC val."""
    augmented = "aug" in split
    labels = "SegmentationClassAug" if augmented else "SegmentationClass"
    pairs = _listed_pairs(files, "ImageSets/Segmentation", split, labels)
    if augmented and not files.has(labels):
        raise DatasetError(f"{files}/{labels}: missing; {split} needs the SBD labels as 8-bit PNG there")
    return Listing(list(VOC.names), pairs)


CONTEXT = (
    "background aeroplane bag bed bedclothes bench bicycle bird boat book bottle building bus cabinet car cat ceiling chair "
    "cloth computer cow cup curtain dog door fence floor flower food grass ground horse keyboard light motorbike mountain "
    "mouse person plate platform pottedplant road rock sheep shelves sidewalk sign sky snow sofa table track train tree "
    "truck tvmonitor wall water window wood"
).split()


def _context(files: Files, split: str) -> Listing:
    """PASCAL-Context's 59 classes and background (value 0), in the alphabetical order of the converted labels."""
    return Listing(CONTEXT, _listed_pairs(files, "ImageSets/SegmentationContext", split, "SegmentationClassContext"))


def _person_part(files: Files, split: str) -> Listing:
    """PASCAL-Person-Part: six parts and background (arXiv 1606.00915, section 4.3)."""
    classes = ["background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs"]
    return Listing(classes, _listed_pairs(files, "pascal_person_part_trainval_list", split, "pascal_person_part_gt"))


# labelId -> trainId of the official scripts' table; every other labelId (0..33, and -1 as 255) is ignored.
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)


def _cityscapes(files: Files, split: str) -> Listing:
    """Cityscapes: labelIds are mapped to the 19 trainIds; the converted *_labelTrainIds files are not needed."""
    pairs = []
    for name in files.names(f"leftImg8bit/{split}"):
        if name.endswith("_leftImg8bit.png"):
            scene = name.removesuffix("_leftImg8bit.png")
            pairs.append((scene, f"leftImg8bit/{split}/{name}", f"gtFine/{split}/{scene}_gtFine_labelIds.png"))
    values = dict.fromkeys([*range(34), IGNORE], IGNORE) | {label: train for train, label in enumerate(CITYSCAPES_IDS)}
    return Listing(list(CITYSCAPES.names), pairs, values)


def _pairs_by_stem(files: Files, images: str, labels: str) -> list[tuple[str, str, str]]:
    return [(stem, f"{images}/{name}", f"{labels}/{stem}.png") for stem, name in _by_stem(files, images).items()]


def _ade20k(files: Files, split: str) -> Listing:
    """ADEChallengeData2016: values 1..150 are the classes of objectInfo150.txt, 0 is ignored."""
    folder = {"train": "training", "val": "validation"}.get(split, split)
    table = lines(files, "objectInfo150.txt", lambda: ["train", "val"])[1:]
    classes = [line.split("\t")[-1].strip() for line in table]
    values = {0: IGNORE} | {value: value - 1 for value in range(1, len(classes) + 1)}
    return Listing(classes, _pairs_by_stem(files, f"images/{folder}", f"annotations/{folder}"), values)


# COCO's list has 182 ids, of which the data set uses 171; these it never uses.
COCO_UNUSED = {"street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush"}


def _coco_stuff(files: Files, split: str) -> Listing:
    """COCO-Stuff 164k: labels.txt names id k + 1 for value k; unused ids are left out, value 255 is ignored."""
    folder = {"train": "train2017", "val": "val2017"}.get(split, split)
    classes: list[str] = []
    values = {IGNORE: IGNORE}
    for line in lines(files, "labels.txt", lambda: ["train", "val"]):
        number, _, name = (part.strip() for part in line.partition(":"))
        if not number.isdigit() or not name:
            raise DatasetError(f"{files}/labels.txt: {line!r}; lines 'id: name' are accepted")
        if int(number) and name not in COCO_UNUSED:
            values[int(number) - 1] = len(classes)
            classes.append(name)
    return Listing(classes, _pairs_by_stem(files, f"images/{folder}", f"annotations/{folder}"), values)


LAYOUTS = (
    Layout("plain", ("classes.txt", "images"), _plain),
    Layout("pascal-context", ("ImageSets/SegmentationContext", "JPEGImages"), _context),
    Layout("person-part", ("pascal_person_part_trainval_list", "JPEGImages"), _person_part),
    Layout("voc2012", ("ImageSets/Segmentation", "JPEGImages"), _voc),
    Layout("cityscapes", ("leftImg8bit", "gtFine"), _cityscapes),
    Layout("ade20k", ("objectInfo150.txt", "annotations"), _ade20k),
    Layout("coco-stuff", ("labels.txt", "annotations", "images"), _coco_stuff),
)
