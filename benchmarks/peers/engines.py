"""ONNX Runtime and OpenVINO on one thread, in the environment of requirements.txt: a child of `turns`.

    build/peers/env/bin/python -m peers.engines EXACT.onnx INT8.xml LATTICE COLOUR

The networks take 1 x H x W x 3 uint8 pixels and give 1 x C x h x w float32 scores (`export`). A photo is padded here as this
project's Predictor does it, bottom and right to sides of LATTICE * k + 1 with COLOUR (R,G,B), within the time that is measured.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino

from peers.turns import answer

Network = Callable[[np.ndarray], np.ndarray]
Shape = tuple[int, ...]
# With no bounds at all, OpenVINO 2026.4 computes int8 wrongly (63 % of labels as in float32, not 99 %), and more slowly.
SIDES = openvino.Dimension(33, 1025)
ONE_THREAD = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}


class OnnxRuntime:
    """A network in float32."""

    def __init__(self, path: str) -> None:
        self.path = path

    def compiled(self, shape: Shape | None) -> Network:
        """For inputs of this shape, None for all."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if shape:
            options.add_free_dimension_override_by_name("height", shape[1])
            options.add_free_dimension_override_by_name("width", shape[2])
        session = onnxruntime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixels": pixels})[0]


class OpenVINO:
    """A network in `precision`, that of all arithmetic which a quantized network does not do in int8."""

    def __init__(self, path: str, precision: str) -> None:
        self.path, self.settings = path, {**ONE_THREAD, "INFERENCE_PRECISION_HINT": precision}
        self.core = openvino.Core()

    def compiled(self, shape: Shape | None) -> Network:
        """For inputs of this shape, None for all."""
        model = self.core.read_model(self.path)
        model.reshape(openvino.PartialShape(list(shape) if shape else [1, SIDES, SIDES, 3]))
        request = self.core.compile_model(model, "CPU", self.settings).create_infer_request()
        return lambda pixels: request.infer([pixels], share_inputs=True, share_outputs=True)[0]


def quantize(exact: str, photos: list[np.ndarray], path: str) -> None:
    """NNCF's int8 network with ranges from padded photos, written as OpenVINO's XML.

    Its preset is the default, symmetric: "mixed" is no faster, and no closer to float32.
    """
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)
    data = nncf.Dataset(photos, lambda photo: photo)
    quantized = nncf.quantize(openvino.Core().read_model(exact), data, subset_size=len(photos))
    openvino.save_model(quantized, path, compress_to_fp16=False)


class Peers:
    """What the parent asks for. A peer is called by its name in `engines`; photos by their number among those of `photos`."""

    def __init__(self, exact: str, int8: str, lattice: str, colour: str) -> None:
        self.exact, self.int8, self.lattice = exact, int8, int(lattice)
        self.colour = np.array([int(value) for value in colour.split(",")], np.uint8)
        self.engines: dict[str, OnnxRuntime | OpenVINO] = {
            "ONNX Runtime float32": OnnxRuntime(exact),
            "OpenVINO float32": OpenVINO(exact, "f32"),
            "OpenVINO bfloat16": OpenVINO(exact, "bf16"),
            "OpenVINO int8": OpenVINO(int8, "bf16"),
        }
        self.images: list[np.ndarray] = []
        self.networks: dict[tuple[str, Shape | None], Network] = {}

    def versions(self) -> dict[str, str]:
        from importlib.metadata import version

        return {name: version(name) for name in ("onnxruntime", "openvino", "nncf")}

    def photos(self, paths: list[str]) -> None:
        """Take these .npy files, H x W x 3 uint8, as the photos, and forget the networks that were compiled for others."""
        self.images = [np.load(path) for path in paths]
        self.networks = {key: network for key, network in self.networks.items() if key[1] is None}

    def calibrate(self) -> None:
        """Write the int8 network with the ranges of the photos, unless it is there."""
        if not Path(self.int8).exists():
            quantize(self.exact, [self._padded(image) for image in self.images], self.int8)

    def compile(self, peer: str, fixed: bool) -> float:
        """Compile the networks that `score` needs, one for each padded size if `fixed`: CPU seconds.

        The one for all sizes also scores a small picture: its first inference makes what all later ones need.
        """
        start = time.process_time()
        for shape in {self._shape(image) for image in self.images} if fixed else {None}:
            if (peer, shape) not in self.networks:
                self.networks[peer, shape] = self.engines[peer].compiled(shape)
                if shape is None:
                    self.networks[peer, shape](np.zeros((1, 65, 65, 3), np.uint8))
        return time.process_time() - start

    def score(self, peer: str, fixed: bool, scores: str | None = None) -> float:
        """Score all photos, one after the other: CPU seconds. scores: a folder to write 0.npy, 1.npy, ... into."""
        seconds = 0.0
        for number, image in enumerate(self.images):
            start = time.process_time()
            pixels = self._padded(image)
            result = self.networks[peer, pixels.shape if fixed else None](pixels)
            seconds += time.process_time() - start
            if scores:
                np.save(Path(scores) / f"{number}.npy", result[0])
        return seconds

    def _shape(self, image: np.ndarray) -> Shape:
        height, width = (-(-(side - 1) // self.lattice) * self.lattice + 1 for side in image.shape[:2])
        return 1, height, width, 3

    def _padded(self, image: np.ndarray) -> np.ndarray:
        pixels = np.empty(self._shape(image), np.uint8)
        pixels[:] = self.colour
        pixels[0, : image.shape[0], : image.shape[1]] = image
        return pixels


def main() -> None:
    peers = Peers(*sys.argv[1:])
    functions: dict[str, Callable[..., Any]] = {
        name: getattr(peers, name) for name in ("versions", "photos", "calibrate", "compile", "score")
    }
    answer(**functions)


if __name__ == "__main__":
    main()
