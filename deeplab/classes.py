"""Class tables: id, name and colour of every class that a model knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

IGNORE = 255  # the label of pixels that are neither learnt from nor counted

BACKGROUND = ("background", "void", "none", "unlabeled", "unlabelled")


@dataclass(frozen=True)
class ClassTable:
    """Names and palette by class id (0 first). Colours are RGB, 0..255; id 255 is never a class but "ignored"."""

    names: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.colours):
            raise ValueError(f"{len(self.names)} class names and {len(self.colours)} colours")
        if len(set(self.names)) != len(self.names):
            raise ValueError("class names must differ from each other")
        for name, colour in zip(self.names, self.colours, strict=True):
            if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
                raise ValueError(f"colour {colour} of class {name}: three whole numbers 0..255 are accepted")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def background(self) -> int | None:
        """0 if the name of class 0 is in BACKGROUND; None if class 0 is a class like any other, such as road."""
        return 0 if self.names and self.names[0].strip("_ ").lower() in BACKGROUND else None

    @classmethod
    def from_names(cls, names: Sequence[str]) -> ClassTable:
        """Names with PASCAL VOC's palette, which gives any number of ids distinct colours."""
        return cls(tuple(names), tuple(voc_colour(index) for index in range(len(names))))

    @property
    def display_colours(self) -> tuple[tuple[int, int, int], ...]:
        """The colours at full strength, for pictures: many of VOC's are too dark to tell apart on a photo.

        Classes whose colours differ in strength alone (VOC's aeroplane, cat and chair are all red) become pale or dark.
        """
        return _display_colours(self.colours)

    def palette(self) -> list[int]:
        """768 numbers for an 8-bit palette image: R, G, B of ids 0..255; ids without a class have VOC's colours."""
        return list(_palette(self.colours))


@lru_cache(maxsize=16)
def _display_colours(colours: tuple[tuple[int, int, int], ...]) -> tuple[tuple[int, int, int], ...]:
    shown: list[tuple[int, int, int]] = []
    for colour in colours:
        full = [value * 255 // max(1, *colour) for value in colour]
        # Full strength, then on the way to white or black.
        ways = ((255, 2), (0, 2), (255, 3), (0, 1))
        offers = [tuple(full), *(tuple(((4 - part) * value + part * end) // 4 for value in full) for end, part in ways)]
        shown.append(next((offer for offer in offers if offer not in shown), offers[0]))  # type: ignore[arg-type]
    return tuple(shown)


@lru_cache(maxsize=16)  # every mask needs it, and computing it takes as long as compressing a small one
def _palette(colours: tuple[tuple[int, int, int], ...]) -> bytes:
    filled = [*colours, *(voc_colour(index) for index in range(len(colours), 256))][:256]
    return bytes(value for colour in filled for value in colour)


def voc_colour(index: int) -> tuple[int, int, int]:
    """PASCAL VOC's colour of a class id: the bits of the id go to R, G and B in turn, highest colour bit first."""
    red = green = blue = 0
    for shift in range(7, -1, -1):
        red |= (index & 1) << shift
        green |= (index >> 1 & 1) << shift
        blue |= (index >> 2 & 1) << shift
        index >>= 3
    return red, green, blue


PETS = ClassTable(("background", "cat", "dog"), (voc_colour(0), voc_colour(8), voc_colour(12)))
VOC = ClassTable.from_names(
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor".split()
)
CITYSCAPES = ClassTable(
    tuple(
        "road,sidewalk,building,wall,fence,pole,traffic light,traffic sign,vegetation,terrain,sky,person,rider,car,truck,"
        "bus,train,motorcycle,bicycle".split(",")
    ),
    (
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
        (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
        (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
)  # fmt: skip
