"""Region proposals: boxes of an image that may hold an object, ranked, from OpenCV's extra modules."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal, get_args

import numpy as np

from deeplab.errors import UserError

Method = Literal["edge-boxes", "selective-search"]
Paste = Literal["max", "mean"]
# Pixels of the longer side at which boxes are found, PASCAL VOC's. Larger images are reduced: at 500 pixels, edge boxes take 1 s of
# a core for a photo and 15 s for noise, at 1000 pixels minutes.
LONGEST = 500
BLUR = 1.0  # pixels, of the Gaussian before the gradient: JPEG's blocks and grain leave no edges
FAINTEST = 8.0  # grey levels a pixel: the least gradient that counts as a full edge, so that a flat image has no edges
FULL = 99.0  # percentile of an image's gradients that counts as a full edge


class ProposalsUnavailable(UserError):
    """OpenCV's extra modules are not installed; the message says how to install them."""


@dataclass(frozen=True)
class Proposals:
    """How a network scores an image box by box (DeconvNet, arXiv 1505.04366, section 4.3). ValueError for values out of range.

    The defaults are those of the released code (`generate_EDeconvNet_CRF_results.m`).
    """

    method: Method = "edge-boxes"
    """What finds and ranks the boxes."""
    ranked: int = 2000
    """Boxes that are ranked."""
    count: int = 50
    """The first of them that are scored..."""
    smallest: int = 112
    """...if both sides have at least this many pixels."""
    paste: Paste = "max"
    """How the scores of several boxes become one at a pixel: the largest, at least 0, or the mean."""

    def __post_init__(self) -> None:
        for name, accepted in (("method", get_args(Method)), ("paste", get_args(Paste))):
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} {getattr(self, name)!r}: {' and '.join(map(repr, accepted))} are accepted")
        for name in ("ranked", "count", "smallest"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 10_000:
                raise ValueError(f"{name} {value!r}: 1 to 10000 is accepted")


def require_opencv() -> ModuleType:
    """The module cv2 with its extra modules. ProposalsUnavailable if it is missing or lacks them."""
    try:
        import cv2
    except ImportError as error:
        raise ProposalsUnavailable(
            "region proposals need the package opencv-contrib-python-headless: pip install 'deeplab-pipelines[proposals]'"
        ) from error
    if not hasattr(cv2, "ximgproc"):
        raise ProposalsUnavailable(
            f"region proposals need OpenCV's extra modules, which the installed cv2 {cv2.__version__} lacks: pip uninstall its "
            "package (opencv-python or opencv-python-headless), then pip install 'deeplab-pipelines[proposals]'"
        )
    cv2.setNumThreads(1)  # of a task's one core
    module: ModuleType = cv2
    return module


def chosen_boxes(image: np.ndarray, proposals: Proposals) -> np.ndarray:
    """H x W x 3 uint8 RGB -> the boxes to score, best first: N x 4 int32 (left, top, right, bottom), right and bottom excluded.

    The first `count` of `ranked_boxes` with both sides of at least `smallest`. Where there is none, because the image is
    smaller or has no edges, the whole image is the one box. Equal images have equal boxes.
    """
    height, width = image.shape[:2]
    if min(height, width) >= proposals.smallest:
        boxes = ranked_boxes(image, proposals.method, proposals.ranked)
        chosen: np.ndarray = boxes[(boxes[:, 2:] - boxes[:, :2]).min(1) >= proposals.smallest][: proposals.count]
        if len(chosen):
            return chosen
    return np.array([[0, 0, width, height]], np.int32)


def ranked_boxes(image: np.ndarray, method: Method, count: int) -> np.ndarray:
    """H x W x 3 uint8 RGB -> at most `count` boxes inside the image, best first: N x 4 int32 as above; none without edges.

    "edge-boxes": by the contours that lie wholly in a box (Zitnick and Dollar, ECCV 2014), on `gradient_edges`, as
    OpenCV comes without a model of the paper's structured-forest edges. "selective-search": the regions of its fast mode, largest
    first, because the library ranks them at random. Boxes of an image of more than LONGEST pixels a side are found on a
    reduced one. Raises ProposalsUnavailable.
    """
    cv2 = require_opencv()
    height, width = image.shape[:2]
    reduction = max(height, width, LONGEST) / LONGEST
    if reduction > 1:
        small = max(1, round(width / reduction)), max(1, round(height / reduction))
        image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    if method == "edge-boxes":
        ranked, _ = cv2.ximgproc.createEdgeBoxes(maxBoxes=count).getBoundingBoxes(*gradient_edges(image))
    else:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
        search.switchToSelectiveSearchFast()
        ranked = search.process()
    boxes = np.array(ranked, np.int32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # from left, top, width, height
    if method == "selective-search":
        left, top, right, bottom = boxes.T
        boxes = boxes[np.lexsort((bottom, right, top, left, -(right - left) * (bottom - top)))]
    if reduction > 1:
        boxes = np.round(boxes * np.divide([width, height] * 2, small * 2)).astype(np.int32)
    return boxes[:count]


def gradient_edges(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H x W x 3 uint8 -> thin edges (float32 H x W, 0..1) and their normals' angles (float32 H x W, 0..pi).

    At each pixel the strongest of the three channels' gradients counts, if no neighbour along its direction is stronger.
    """
    cv2: Any = require_opencv()
    smooth = cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, *order, ksize=3, scale=1 / 8) for order in ((1, 0), (0, 1)))
    strength = np.hypot(across, down)
    strongest = strength.argmax(2)[..., None]
    across, down, strength = (np.take_along_axis(maps, strongest, 2)[..., 0] for maps in (across, down, strength))
    angle = np.mod(np.arctan2(down, across), np.pi).astype(np.float32)
    rows, columns = np.indices(strength.shape, np.float32)
    peak = np.ones(strength.shape, bool)
    for step in (-1, 1):
        at = columns + step * np.cos(angle), rows + step * np.sin(angle)
        neighbour = cv2.remap(strength, *at, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        peak &= strength * 1.01 >= neighbour  # the factor keeps edges whose two middle pixels are equal
    full = max(float(np.percentile(strength, FULL)), FAINTEST)
    return np.where(peak, np.minimum(strength / full, 1), 0).astype(np.float32), angle
