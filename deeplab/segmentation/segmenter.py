"""`deeplab.load` and what it returns: a model that segments images from anywhere in memory or on disk."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import entry_points
from io import IOBase
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from deeplab.crf import DenseCRF, Refinement
from deeplab.devices import device_named
from deeplab.errors import ImageError
from deeplab.models import checkpoint
from deeplab.models.checkpoint import Model, ModelError
from deeplab.placement import Placement
from deeplab.scoring.interface import AnyPredictor
from deeplab.scoring.model_predictor import predictor_of
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.row_bands import RowSource
from deeplab.scoring.settings import Scoring
from deeplab.segmentation.image_source import ACCEPTED, ImageLike, ImageSource, Opened, Unusable, decoded
from deeplab.segmentation.labelling import labelled
from deeplab.segmentation.large_images import MeanConfidence, margin_of, opened
from deeplab.segmentation.mask import BrokenImage, Mask
from deeplab.segmentation.options import MaskOptions
from deeplab.segmentation.windows import Loaded, Progress, Windows

READERS = "deeplab.models"  # entry points that read models from elsewhere: reference -> what `checkpoint.read` returns
PREDICTORS = 2  # networks that are kept for further calls, each with its own scales, stride or precision
GPU_WINDOW, CPU_WINDOW = 16, 4  # images that the network takes at a time


def load(model: str | os.PathLike[str], *, device: str = "auto") -> Segmenter:
    """A model that is ready to segment images.

    model: the name of a bundled model ("voc", "pets"), a model folder, s3://bucket/prefix, or REGISTRY@ALIAS. The last two are
    read by the package that the entry point `deeplab.models` names: pipelines/, if it is installed.
    device: "auto" is the GPU if there is one; "cpu" and "cuda" are accepted.
    Raises ModelError (no such model, a damaged one) and DeviceError.
    """
    return Segmenter(checkpoint.parse(*_read(os.fspath(model))), device=device)


class Segmenter:
    """A model on a device, as `deeplab.load` returns it. `segment` makes masks.

    `model`: the loaded model with its card; `classes`: the names of all classes, by id. One object serves several threads, which
    take turns at the network.
    """

    def __init__(self, model: Model, *, device: str = "auto") -> None:
        self.model = model
        self.classes = model.classes.names
        self.device, self._wanted = device_named(device), device  # int8 takes the CPU where any device may be taken
        self._predictors: dict[tuple[int | None, Scoring], tuple[Model, AnyPredictor]] = {}
        self._lock = threading.Lock()
        self._engines = threading.local()

    @overload
    def segment(self, image: ImageLike, **options: Any) -> Mask: ...

    @overload
    def segment(self, image: Iterable[ImageLike], *, progress: bool = False, **options: Any) -> Iterator[Mask | BrokenImage]: ...

    def segment(
        self, image: ImageLike | Iterable[ImageLike], *, progress: bool = False, **options: Any
    ) -> Mask | Iterator[Mask | BrokenImage]:
        """The mask of one image, or the masks of many, one after the other.

        image: a path, the bytes of an image file, an H x W x 3 uint8 RGB array or a Pillow image; or a list or generator of these.
        options: those of `MaskOptions`, which have the names and defaults of `deeplab segment`: quality, crf, scales, ...
        progress: with many images, count them on standard error.

        One image: returns its Mask. Raises OSError if it cannot be read, ImageError if it is not an image.
        Many: returns an iterator over a Mask for each in their order, or a BrokenImage with its error. Up to 16 images (with a GPU
        64) are taken from a generator before its first mask comes, so that reading, the network and the CRF work at the same
        time; memory does not grow with their number. An error of the generator itself is raised after the masks before it.

        Raises ValueError and TypeError for options that do not exist or are out of range, ModelError for what this model cannot
        do, and TypeError for an image of another kind.
        """
        maker = self._maker(MaskOptions.named(**options))
        if isinstance(image, str | os.PathLike | bytes | bytearray | memoryview | np.ndarray | Image.Image):
            return maker.one(ImageSource(image))
        if not isinstance(image, Iterable) or isinstance(image, IOBase | Mapping):  # a file would be iterated by lines
            raise TypeError(f"{type(image).__name__}: {ACCEPTED} is accepted, or several of them")
        return maker.many(image, progress)

    def _maker(self, options: MaskOptions) -> _MaskMaker:
        key = (options.wanted_stride, options.scoring(self.model))
        with self._lock:
            if key not in self._predictors:
                prepared = options.prepared(self.model)
                self._predictors[key] = prepared, predictor_of(prepared, key[1], device=self._wanted)
            self._predictors[key] = self._predictors.pop(key)  # the latest last
            if len(self._predictors) > PREDICTORS:
                del self._predictors[next(iter(self._predictors))]
            return _MaskMaker(*self._predictors[key], options, self._lock, self._engines)

    def __repr__(self) -> str:
        names = [name for name in self.classes if name != "background"]
        listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return f"<Segmenter {self.model.label} on {self.device}: {listed}>"


class _MaskMaker:
    """Makes masks by one set of options."""

    def __init__(
        self, model: Model, predictor: AnyPredictor, options: MaskOptions, turn: threading.Lock, engines: threading.local
    ) -> None:
        self.model, self.predictor, self.options, self.turn, self.engines = model, predictor, options, turn, engines
        self.refinement = options.refinement(model, str(predictor.device))
        self.scored = options.scored(model, predictor.precision)

    def one(self, source: ImageSource) -> Mask:
        try:
            image = source.open()
            pixels = decoded(image, self.options.max_pixels)
        except Unusable as error:
            raise error.alone(source.name) from None
        threads = torch.get_num_threads()
        if pixels is None or self.predictor.in_windows(*pixels.shape[:2]):
            return self._in_bands(source, image, pixels, threads)
        return self._mask(source, pixels, self._scores([pixels])[0], threads)

    def many(self, images: Iterable[ImageLike], progress: bool) -> Iterator[Mask | BrokenImage]:
        shown = Progress(images, progress)
        threads = torch.get_num_threads() if self.options.crf_backend == "native" else 1
        pool = ThreadPoolExecutor(threads)
        most = GPU_WINDOW if self.predictor.device.type == "cuda" else CPU_WINDOW
        if self.predictor.stride == 1:
            most = 1  # scores of every pixel take 32 MB for 375 x 500 pixels and 21 classes
        windows = Windows(images, pool, most, self.options.max_pixels)
        pending: deque[Future[Mask] | BrokenImage] = deque()
        try:
            for window in windows:
                before = len(pending)
                pending.extend(self._started(window, pool))
                for _ in range(before):  # the CRF of this window goes on beside the network's work on the next
                    yield _result(pending.popleft())
                    shown.step()
            while pending:
                yield _result(pending.popleft())
                shown.step()
            shown.finish()
            if windows.trouble is not None:
                raise windows.trouble
        finally:
            pool.shutdown(cancel_futures=True)

    def _started(self, window: list[Loaded], pool: ThreadPoolExecutor) -> Iterator[Future[Mask] | BrokenImage]:
        whole = [
            image.pixels if image.pixels is not None and not self.predictor.in_windows(*image.pixels.shape[:2]) else None
            for image in window
        ]
        scores = iter(self._scores([pixels for pixels in whole if pixels is not None]))
        for image, pixels in zip(window, whole, strict=True):
            if image.error is not None:
                yield BrokenImage(image.source.name, str(image.error))
            elif pixels is not None:
                yield pool.submit(self._mask, image.source, pixels, next(scores), 1)
            else:
                assert image.opened is not None
                finished: Future[Mask] = Future()
                try:
                    finished.set_result(self._in_bands(image.source, image.opened, image.pixels, 1))
                    yield finished
                except ImageError as error:
                    yield BrokenImage(image.source.name, str(Unusable("decode", error)))

    def _scores(self, images: list[np.ndarray]) -> list[np.ndarray]:
        with self.turn:
            return self.predictor.scores(images)

    def _mask(self, source: ImageSource, pixels: np.ndarray, scores: np.ndarray, threads: int) -> Mask:
        placement = self.predictor.placement(scores, *pixels.shape[:2])
        labels, refined = labelled(scores, placement, pixels.shape[:2], pixels, self.refinement, self._engine(threads))
        return self._described(source, labels, confidence(scores), refined)

    def _in_bands(self, source: ImageSource, image: Opened, pixels: np.ndarray | None, threads: int) -> Mask:
        """A mask without all scores, or all pixels, in memory. Raises ImageError."""
        refined: set[str] = set()

        def label(part: np.ndarray, scores: np.ndarray, placement: Placement) -> np.ndarray:
            labels, by = labelled(scores, placement, part.shape[:2], part, self.refinement, self._engine(threads))
            refined.update([by] if by else [])
            return labels

        margin, sure = margin_of(self.predictor, self.refinement is not None), MeanConfidence()

        def labels_of(rows: np.ndarray | RowSource) -> np.ndarray:
            with self.turn:
                return np.concatenate(list(self.predictor.label_bands(rows, label, margin, sure.watch)))

        if pixels is not None:
            labels = labels_of(pixels)
        else:
            assert image.encoded is not None and image.header is not None
            with opened(image.encoded, image.header, self.predictor, margin) as rows:
                labels = labels_of(rows)
        return self._described(source, labels, sure.mean, " and ".join(sorted(refined)) or None)

    def _described(self, source: ImageSource, labels: np.ndarray, sure: float, refined: str | None) -> Mask:
        return Mask(labels, sure, self.model.classes, self.model.label, self.scored, refined, source)

    def _engine(self, threads: int) -> Callable[[Refinement], DenseCRF]:
        """The CRF of a refinement with its buffers: one per thread, kept for the thread's next image."""

        def engine(refinement: Refinement) -> DenseCRF:
            if getattr(self.engines, "refinement", None) != refinement:
                self.engines.refinement, self.engines.crf = refinement, refinement.engine()
            crf: DenseCRF = self.engines.crf
            crf.threads = min(threads, 64)
            return crf

        return engine


def _result(entry: Future[Mask] | BrokenImage) -> Mask | BrokenImage:
    return entry if isinstance(entry, BrokenImage) else entry.result()


def _read(reference: str) -> tuple[Path, bytes, bytes]:
    """A model's folder, card and weights. Raises ModelError."""
    elsewhere = ("://" in reference or "@" in reference) and not Path(reference).exists()
    if not elsewhere:
        return checkpoint.read(reference)
    for reader in entry_points(group=READERS):
        source: tuple[Path, bytes, bytes] = reader.load()(reference)
        return source
    raise ModelError(
        f"{reference}: models in stores and registries are read by the package's pipelines, which are not installed here (no "
        f"entry point {READERS}); a model folder or a bundled model is accepted: {', '.join(checkpoint.bundled())}"
    )
