"""What the compiled engine (src/module.cpp) offers. Use it through deeplab.crf, which checks arguments."""

import numpy as np

builds: list[str]
"""Names of the builds that this machine can run, best first."""

class Engine:
    """Dense CRF inference on images. Buffers are kept between calls; calls from several threads take turns."""

    def __init__(self, build: str = "auto") -> None: ...
    @property
    def bytes(self) -> int:
        """Size of the buffers."""

    def refine(
        self,
        image: np.ndarray,
        scores: np.ndarray,
        *,
        step_y: float,
        shift_y: float,
        step_x: float,
        shift_x: float,
        probabilities: bool,
        full_size: bool,
        out: np.ndarray,
        iterations: int,
        pos_w: float,
        pos_x: float,
        pos_y: float,
        bi_w: float,
        bi_x: float,
        bi_y: float,
        bi_r: float,
        bi_g: float,
        bi_b: float,
        normalization: int,
        fast: bool,
        half: bool,
        prune: float,
        freeze: float,
        block_lanes: int,
        threads: int,
    ) -> dict[str, float]:
        """H x W x 3 uint8 and C x h x w float32 -> fills `out` and returns the statistics of the call (DenseCRF.stats).

        out: H x W uint8 or uint16 labels, or C x H x W float32 marginals. normalization: 0 none, 1 before, 2 after,
        3 symmetric. All arrays are C-contiguous. ValueError for values out of range.
        """

    def release(self) -> None:
        """Free the buffers."""

class Filter:
    """The Gaussian filter of unit deviation over N points with 1 to 6 features: N x d float32, C-contiguous."""

    def __init__(self, features: np.ndarray, build: str = "auto") -> None: ...
    @property
    def vertices(self) -> int:
        """Vertices of the lattice."""

    def apply(self, values: np.ndarray, out: np.ndarray) -> None:
        """Filter C x N float32 `values` into `out`, without the kernel's normalisation."""
