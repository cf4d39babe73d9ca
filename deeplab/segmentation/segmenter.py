"""`deeplab.load` and what it returns: a model that segments images from anywhere in memory or on disk."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image

from deeplab.crf import DenseCRF, Refinement
from deeplab.devices import device_named
from deeplab.models import checkpoint
from deeplab.models.checkpoint import Model, ModelError
from deeplab.scoring.multiscale import confidence
from deeplab.scoring.predictor import Predictor
from deeplab.scoring.settings import Scoring
from deeplab.segmentation.image_source import ACCEPTED, ImageLike, ImageSource, Opened, Unusable, decoded
from deeplab.segmentation.large_images import labels_by_rows
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
        self.device = device_named(device)
        self._predictors: dict[tuple[int | None, Scoring], Predictor] = {}
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
        if isinstance(image, str | os.PathLike | bytes | np.ndarray | Image.Image):
            return maker.one(ImageSource(image))
        if not isinstance(image, Iterable):
            raise TypeError(f"{type(image).__name__}: {ACCEPTED} is accepted, or several of them")
        return maker.many(image, progress)

    def _maker(self, options: MaskOptions) -> _MaskMaker:
        prepared = options.prepared(self.model)
        scoring = options.scoring(prepared)
        key = (prepared.output_stride, scoring)
        with self._lock:
            predictor = self._predictors.pop(key, None) or Predictor(prepared.network, scoring, device=str(self.device))
            self._predictors[key] = predictor
            if len(self._predictors) > PREDICTORS:
                del self._predictors[next(iter(self._predictors))]
        return _MaskMaker(prepared, predictor, options, self._lock, self._engines)

    def __repr__(self) -> str:
        names = [name for name in self.classes if name != "background"]
        listed = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        return f"<Segmenter {self.model.label} on {self.device}: {listed}>"


class _MaskMaker:
    """Makes masks by one set of options."""

    def __init__(
        self, model: Model, predictor: Predictor, options: MaskOptions, turn: threading.Lock, engines: threading.local
    ) -> None:
        self.model, self.predictor, self.options, self.turn, self.engines = model, predictor, options, turn, engines
        self.refinement = options.refinement(model, str(predictor.device))
        self.scored = options.scored(model, predictor.precision)

    def one(self, source: ImageSource) -> Mask:
        try:
            opened = source.open()
            pixels = decoded(opened, self.options.max_pixels)
        except Unusable as error:
            if isinstance(error.cause, ValueError) and source.name not in str(error.cause):
                raise type(error.cause)(f"{source.name}: {error.cause}") from error.cause
            raise error.cause from None
        threads = torch.get_num_threads()
        if pixels is None:
            return self._large(source, opened, threads)
        return self._mask(source, pixels, self._scores([pixels])[0], threads)

    def many(self, images: Iterable[ImageLike], progress: bool) -> Iterator[Mask | BrokenImage]:
        shown = Progress(images, progress)
        threads = torch.get_num_threads() if self.options.crf_backend == "native" else 1
        pool = ThreadPoolExecutor(threads)
        most = GPU_WINDOW if self.predictor.device.type == "cuda" else CPU_WINDOW
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
        scores = iter(self._scores([image.pixels for image in window if image.pixels is not None]))
        for image in window:
            if image.error is not None:
                yield BrokenImage(image.source.name, str(image.error))
            elif image.pixels is not None:
                yield pool.submit(self._mask, image.source, image.pixels, next(scores), 1)
            else:
                assert image.opened is not None
                try:
                    finished: Future[Mask] = Future()
                    finished.set_result(self._large(image.source, image.opened, 1))
                    yield finished
                except ValueError as error:  # ImageError
                    yield BrokenImage(image.source.name, str(Unusable("decode", error)))

    def _scores(self, images: list[np.ndarray]) -> list[np.ndarray]:
        with self.turn:
            return self.predictor.scores(images)

    def _mask(self, source: ImageSource, pixels: np.ndarray, scores: np.ndarray, threads: int) -> Mask:
        labels, refined = self._labels(pixels, scores, threads)
        return self._described(source, labels, confidence(scores), refined)

    def _large(self, source: ImageSource, opened: Opened, threads: int) -> Mask:
        refined: list[str | None] = []

        def label(pixels: np.ndarray, scores: np.ndarray) -> np.ndarray:
            labels, by = self._labels(pixels, scores, threads)
            refined.append(by)
            return labels

        assert opened.encoded is not None and opened.header is not None
        with self.turn:
            labels, sure = labels_by_rows(opened.encoded, opened.header, self.predictor, label, self.refinement is not None)
        return self._described(source, labels, sure, " and ".join(sorted({by for by in refined if by})) or None)

    def _described(self, source: ImageSource, labels: np.ndarray, sure: float, refined: str | None) -> Mask:
        return Mask(labels, sure, self.model.classes, self.model.label, self.scored, refined, source)

    def _labels(self, pixels: np.ndarray, scores: np.ndarray, threads: int) -> tuple[np.ndarray, str | None]:
        """Labels, H x W, and the CRF that refined them."""
        if self.refinement is None:
            return self.predictor.labels_of(scores, *pixels.shape[:2]), None
        try:
            return self._refined(self.refinement, pixels, scores, threads)
        except torch.OutOfMemoryError:  # a large image on a small GPU
            return self._refined(replace(self.refinement, mode="exact", backend="native"), pixels, scores, threads)

    def _refined(
        self, refinement: Refinement, pixels: np.ndarray, scores: np.ndarray, threads: int
    ) -> tuple[np.ndarray, str | None]:
        crf = self._engine(refinement)
        crf.threads = min(threads, 64)
        network = self.predictor.network
        return crf.labels(pixels, scores, stride=network.stride, align_corners=network.align_corners), crf.short()

    def _engine(self, refinement: Refinement) -> DenseCRF:
        """The CRF with its buffers, one per thread and kept for the thread's next image."""
        if getattr(self.engines, "refinement", None) != refinement:
            self.engines.refinement, self.engines.crf = refinement, refinement.engine()
        engine: DenseCRF = self.engines.crf
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
