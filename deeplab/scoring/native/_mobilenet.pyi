"""What the compiled engine (src/module.cpp) offers. Use it through deeplab.scoring.native, which prepares the arrays."""

import numpy as np

builds: list[tuple[str, str]]
"""(precision, name) of the builds that this machine can run, best first."""

Parts = tuple[np.ndarray, np.ndarray, int] | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""A convolution: in bfloat16 float32 weights (outputs x inputs, depthwise channels x 9) and bias, and the activation (0 none,
1 ReLU6, 2 ReLU); in int8 weights, int32 bias, and float32 scale and offset: result = round(sum * scale + offset)."""

class Network:
    """One network in one build. Buffers are kept between calls; calls from several threads take turns."""

    def __init__(self, build: str) -> None: ...
    def add_stem(self, convolution: Parts, *, values: np.ndarray, border: list[int], symmetric: bool) -> None:
        """3x3 with stride 2: 27 inputs (row, column, channel) and a zero. values: what the 256 pixels of each channel mean, 3 x 256
        (int8: empty). border: in int8 the codes of the padding."""

    def add_block(
        self,
        expand: Parts | None,
        depthwise: Parts,
        project: Parts,
        *,
        stride: int,
        rate: int,
        shortcut: bool,
        shortcut_scale: float,
    ) -> None:
        """An inverted residual. shortcut_scale: of the input's codes as they are added (int8)."""

    def add_last(self, convolution: Parts) -> None:
        """The backbone's last 1x1."""

    def add_aspp(self, taps: Parts, *, rates: list[int], bias: np.ndarray) -> None:
        """The sum of dilated 3x3 branches. taps: (branch, row, column, class) x inputs."""

    def add_pooling_head(
        self,
        pooling: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
        convolution: Parts,
        project: Parts,
        score: Parts,
        *,
        zero: float,
        step: float,
    ) -> None:
        """Image pooling beside a 1x1, a 1x1 over both, a 1x1 to the scores.

        pooling: weights (inputs x width), bias, and their share (width x outputs) and offset of the projection's result, each
        flat. A feature is (cell - zero) * step.
        """

    def run(self, pixels: np.ndarray, out: np.ndarray, threads: int) -> None:
        """B x H x W x 3 pixels, uint8 or (bfloat16) normalised float32 -> fills `out`, B x C x h x w float32."""

    def size_of_scores(self, height: int, width: int) -> tuple[int, int]: ...
    @property
    def bytes(self) -> int:
        """Size of the weights and buffers."""
