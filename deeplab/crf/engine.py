"""The dense CRF: an image and class scores in, a refined label map or marginals out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from deeplab.crf.half_size import enlarged, halved_grid, halved_image, halved_parameters
from deeplab.crf.inputs import Grid, check_grid, check_image, upsampled
from deeplab.crf.native import engine_module
from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters, Normalization
from deeplab.placement import Placement

if TYPE_CHECKING:
    import torch  # not needed by the native engine

    from deeplab.crf import _engine

Mode = Literal["fast", "exact", "half"]
Backend = Literal["native", "torch", "pydensecrf"]

_NORMALIZATION_CODES = {"none": 0, "before": 1, "after": 2, "symmetric": 3}


@dataclass(frozen=True)
class Refinement:
    """Which dense CRF refines masks, and what computes it: the arguments of `DenseCRF` with these names."""

    parameters: CRFParameters = field(default_factory=CRFParameters)
    mode: Mode = "fast"
    backend: Backend = "native"
    device: str = "cpu"
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.backend != "native" and self.mode == "fast":  # these have no such mode
            object.__setattr__(self, "mode", "exact")

    def short(self) -> str:
        """Mode, parameters and, if it is not native, backend in one line: "fast i10 pos3/1 bi4/67/3 sym"."""
        return f"{self.mode} {self.parameters.short()}{'' if self.backend == 'native' else ' ' + self.backend}"

    def engine(self) -> DenseCRF:
        """The CRF, with buffers of its own. ValueError for an unknown mode or backend."""
        return DenseCRF(
            self.mode,
            backend=self.backend,
            device=self.device,
            deterministic=self.deterministic,
            **dataclasses.asdict(self.parameters),
        )


class DenseCRF:
    """Fully connected CRF with Potts compatibility and Gaussian edge potentials, solved by mean field.

    mode "exact": all classes, float32, the permutohedral lattice of Adams, Baek & Davis 2010: pydensecrf's model.
    mode "fast": the same lattice, but a class whose probability stays below `prune` everywhere is not filtered (its
    mass stays in the softmax), and a pixel is frozen once none of its marginals changes by more than `freeze`.
    mode "half": fast mode on the photo at half size, with spatial deviations halved; marginals are interpolated back.
    `CRFParameters` describes the kernels; the defaults here are its "kazuto" set.

    backend: "native" is this package's engine (CPU), "torch" the same lattice in torch operations on `device` (auto, cpu
    or cuda), "pydensecrf" the package of that name, for comparison; the latter two approximate nothing else: fast is exact
    there, and half is exact at half size. threads: of the native backend; they do not change the result. deterministic: the
    torch backend sums in a fixed order on a GPU, too.

    Buffers are kept between calls, so use one object per worker; calls from several threads take turns. Pickling and
    copying keep the parameters only. ValueError for parameters out of range.
    """

    def __init__(
        self,
        mode: Mode = "fast",
        *,
        iterations: int = 10,
        pos_w: float = 3.0,
        pos_xy_std: float | tuple[float, float] = 1.0,
        bi_w: float = 4.0,
        bi_xy_std: float | tuple[float, float] = 67.0,
        bi_rgb_std: float | tuple[float, float, float] = 3.0,
        normalization: Normalization = "symmetric",
        backend: Backend = "native",
        threads: int = 1,
        prune: float = 0.05,
        freeze: float = 1e-4,
        device: str = "cpu",
        deterministic: bool = False,
        build: Literal["auto", "avx512", "avx2", "baseline"] = "auto",
        block_lanes: int = 24,
    ) -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"mode {mode!r}: 'fast', 'exact' and 'half' are accepted")
        if backend not in get_args(Backend):
            raise ValueError(f"backend {backend!r}: 'native', 'torch' and 'pydensecrf' are accepted")
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= 64:
            raise ValueError(f"threads {threads!r}: an integer from 1 to 64 is accepted")
        if not 0 <= prune < 1:
            raise ValueError(f"prune {prune!r}: a probability from 0 (keep all classes) to below 1 is accepted")
        if not 0 <= freeze < 1:
            raise ValueError(f"freeze {freeze!r}: a change of probability from 0 (never freeze) to below 1 is accepted")
        if block_lanes not in (4, 8, 12, 16, 20, 24):
            raise ValueError(f"block_lanes {block_lanes!r}: channels filtered together, 4, 8, 12, 16, 20 or 24")
        self.mode, self.backend, self.threads = Refinement(mode=mode, backend=backend).mode, backend, threads
        self.prune, self.freeze = float(prune), float(freeze)
        self.device, self.deterministic, self.build, self.block_lanes = device, deterministic, build, block_lanes
        self.parameters = CRFParameters(iterations, pos_w, pos_xy_std, bi_w, bi_xy_std, bi_rgb_std, normalization)
        self.stats: dict[str, float] = {}
        """Of the last call: bilateral_vertices, gaussian_vertices, classes_kept, active_fraction (pixel updates done
        over pixels x iterations) and the calling thread's CPU milliseconds per stage (native backend)."""
        self._engine: _engine.Engine | None = None

    @classmethod
    def named(cls, name: str, mode: Mode = "fast", **overrides: Any) -> DenseCRF:
        """The CRF with one of PARAMETER_SETS; `overrides` are arguments of the class. ValueError for an unknown name."""
        if name not in PARAMETER_SETS:
            raise ValueError(f"no CRF parameters are named {name!r}: {', '.join(PARAMETER_SETS)} are known")
        return cls(mode, **{**dataclasses.asdict(PARAMETER_SETS[name]), **overrides})

    def labels(
        self,
        image: np.ndarray,
        scores: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        stride: float | None = None,
        align_corners: bool = True,
        placement: Placement | None = None,
    ) -> np.ndarray:
        """The most probable class of every pixel: H x W uint8, uint16 above 256 classes.

        image: H x W x 3 uint8 RGB, as decoded. Either scores: class logits C x h x w (float16, float32 or float64), or
        probabilities of that shape (clipped to at least 1e-5, as users of pydensecrf do). Without `stride`, h x w is
        H x W; with it, score (i, j) lies on pixel (stride * i, stride * j) and scores are interpolated bilinearly; without
        align_corners pixel y reads score (y + 0.5) / stride - 0.5. Positions beyond the ends read the end. placement: instead
        of `stride`, where scores lie that are on no such grid (deeplab.placement). ValueError for other input; it names what
        is accepted.
        """
        image, grid = self._checked(image, scores, probabilities, stride, align_corners, placement)
        dtype = np.uint8 if len(grid.values) <= 256 else np.uint16
        if self.backend == "native":
            return self._native(image, grid, np.empty(image.shape[:2], dtype))
        if self.backend == "torch":  # labels are a hundredth of the marginals to copy from a GPU
            labels: np.ndarray = self._on_device(image, grid).argmax(0).cpu().numpy()
        else:
            labels = self._pydensecrf(image, grid).argmax(0)
        return labels.astype(dtype)

    def marginals(
        self,
        image: np.ndarray,
        scores: np.ndarray | None = None,
        probabilities: np.ndarray | None = None,
        stride: float | None = None,
        align_corners: bool = True,
        placement: Placement | None = None,
    ) -> np.ndarray:
        """Approximate marginal probabilities, C x H x W float32, summing to 1 over the classes. Arguments as for `labels`."""
        image, grid = self._checked(image, scores, probabilities, stride, align_corners, placement)
        if self.backend == "native":
            return self._native(image, grid, np.empty((len(grid.values), *image.shape[:2]), np.float32))
        if self.backend == "torch":
            return self._on_device(image, grid).cpu().numpy()
        return self._pydensecrf(image, grid)

    def short(self) -> str:
        """Mode, parameters and, if it is not native, backend in one line."""
        return Refinement(self.parameters, self.mode, self.backend).short()

    def __repr__(self) -> str:
        return f"DenseCRF({self.short()!r})"

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_engine": None, "stats": {}}

    def release(self) -> None:
        """Free the buffers that are kept for the next image."""
        if self._engine is not None:
            self._engine.release()

    def _checked(
        self,
        image: object,
        scores: object,
        probabilities: object,
        stride: float | None,
        align_corners: bool,
        placement: Placement | None,
    ) -> tuple[np.ndarray, Grid]:
        checked = check_image(image)
        return checked, check_grid(checked, scores, probabilities, stride, align_corners, placement)

    def _native(self, image: np.ndarray, grid: Grid, out: np.ndarray) -> np.ndarray:
        if self._engine is None:
            self._engine = engine_module().Engine(self.build)
        p = self.parameters
        self.stats = self._engine.refine(
            image,
            grid.values,
            step_y=grid.placement.rows.step,
            shift_y=grid.placement.rows.shift,
            step_x=grid.placement.columns.step,
            shift_x=grid.placement.columns.shift,
            probabilities=grid.probabilities,
            full_size=grid.full_size,
            out=out,
            iterations=p.iterations,
            pos_w=p.pos_w,
            pos_x=p.pos_xy[0],
            pos_y=p.pos_xy[1],
            bi_w=p.bi_w,
            bi_x=p.bi_xy[0],
            bi_y=p.bi_xy[1],
            bi_r=p.bi_rgb[0],
            bi_g=p.bi_rgb[1],
            bi_b=p.bi_rgb[2],
            normalization=_NORMALIZATION_CODES[p.normalization],
            fast=self.mode != "exact",
            half=self.mode == "half",
            prune=self.prune,
            freeze=self.freeze,
            block_lanes=self.block_lanes,
            threads=self.threads,
        )
        return out

    def _pydensecrf(self, image: np.ndarray, grid: Grid) -> np.ndarray:
        from deeplab.crf.pydensecrf_backend import pydensecrf_marginals

        height, width = image.shape[:2]
        image, grid, parameters = self._at_its_size(image, grid)
        logits = upsampled(grid, *image.shape[:2])
        self.stats = {"classes_kept": len(logits), "active_fraction": 1.0}
        marginals = pydensecrf_marginals(image, logits, parameters)
        return enlarged(marginals, height, width) if self.mode == "half" else marginals

    def _at_its_size(self, image: np.ndarray, grid: Grid) -> tuple[np.ndarray, Grid, CRFParameters]:
        """What mean field works on: in half mode the halves, else the arguments."""
        if self.mode != "half":
            return image, grid, self.parameters
        return halved_image(image), halved_grid(grid), halved_parameters(self.parameters)

    def _on_device(self, image: np.ndarray, grid: Grid) -> torch.Tensor:
        """Marginals C x H x W, on the device."""
        import torch

        from deeplab.crf.torch_lattice import mean_field, upsampled_on
        from deeplab.devices import device_named

        height, width = image.shape[:2]
        image, grid, parameters = self._at_its_size(image, grid)
        device = device_named(self.device)
        unary = upsampled_on(grid, image.shape[0], image.shape[1], device)
        images = torch.from_numpy(image)[None].to(device)
        result, vertices = mean_field(images, unary[None], parameters, deterministic=self.deterministic)
        self.stats = {"classes_kept": len(unary), "active_fraction": 1.0, **vertices}
        if self.mode == "half":
            result = torch.nn.functional.interpolate(result, scale_factor=2, mode="bilinear")[:, :, :height, :width]
        return result[0]
