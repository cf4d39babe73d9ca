"""The compiled engine, and the networks that it computes instead of torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import nn

from deeplab.networks.network import SegmentationNetwork, mixed_grids
from deeplab.scoring.native.int8 import KINDS, Int8Error, int8_program
from deeplab.scoring.native.layers import Layers, layers_of
from deeplab.scoring.native.program import Program, bfloat16_program

if TYPE_CHECKING:
    from deeplab.scoring.native import _mobilenet

CPU = torch.device("cpu")


class EngineModule(Protocol):
    """The extension module, as deeplab/scoring/native/_mobilenet.pyi describes it."""

    @property
    def builds(self) -> list[tuple[str, str]]: ...

    @property
    def Network(self) -> type[_mobilenet.Network]: ...


def engine_module() -> EngineModule | None:
    """The extension module `deeplab.scoring.native._mobilenet`; None where it is not built."""
    try:
        return cast(EngineModule, importlib.import_module("deeplab.scoring.native._mobilenet"))
    except ImportError:
        return None


def builds(precision: str) -> list[str]:
    """The builds for "bfloat16" or "int8" that this package has and this processor can run, best first."""
    module = engine_module()
    return [] if module is None else [name for kind, name in module.builds if kind == precision]


class NativeNetwork(SegmentationNetwork):
    """A network that the engine computes: the same scores up to the rounding of its precision, without gradients."""

    def __init__(self, network: SegmentationNetwork, program: Program, build: str) -> None:
        """build: one of `builds` for the program's number format."""
        nn.Module.__init__(self)
        self.__dict__.update(network.__dict__)  # geometry, classes and normalisation are the network's
        module = engine_module()
        assert module is not None
        self.engine, self.build = module.Network(build), build
        self.coded = len(program.values) == 0
        program.load(self.engine)

    def forward(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """x: B x 3 x H x W, RGB pixels as uint8, or normalised as float32. Computes in as many threads as torch does."""
        assert keep is None
        x = x if x.dtype == torch.uint8 else x.float()
        if self.coded and x.dtype != torch.uint8:  # a pixel is its own code
            x = self.normalization.undo(x).round_().clamp_(0, 255).to(torch.uint8)
        pixels = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
        rows, columns = self.engine.size_of_scores(*pixels.shape[1:3])
        out = np.empty((len(pixels), self.classes, rows, columns), np.float32)
        self.engine.run(pixels, out, min(64, torch.get_num_threads()))
        return mixed_grids(torch.from_numpy(out), self.grids)


def native_network(
    network: SegmentationNetwork, precision: str, device: torch.device = CPU, build: str | None = None
) -> NativeNetwork | None:
    """The network on this package's kernels; None where torch computes it: other kinds, precisions, processors and devices.

    build: one of `builds(precision)`, by default the best; none for bfloat16 on a processor with AMX. Int8Error if int8 is wanted,
    but the network is of another kind, or its ranges are not known.
    """
    if precision == "int8":
        layers = require_int8(network, device)
        assert network.quantization is not None
        return NativeNetwork(network, int8_program(layers, network.quantization), build or builds("int8")[0])
    names = builds(precision) if device.type == "cpu" else []
    if not names or (build is None and torch.cpu._is_amx_tile_supported()):
        return None  # oneDNN's products on AMX's tiles are ahead: `pets` on the examples 0.021 s, here 0.028 on a Zen 4
    known = layers_of(network)
    return NativeNetwork(network, bfloat16_program(known), build or names[0]) if known else None


def require_int8(network: SegmentationNetwork, device: torch.device = CPU, ranges: bool = True) -> Layers:
    """The layers of a network that can be computed in int8 here; else Int8Error with what to do.

    ranges: whether it must have a quantization.
    """
    if device.type != "cpu":
        raise Int8Error(f"precision int8: it is for CPUs; on {device.type} float16 is accepted")
    if not builds("int8"):
        raise Int8Error("precision int8: the scoring engine is not built for this Python; install the package with pip")
    layers = layers_of(network)
    if layers is None:
        raise Int8Error(f"precision int8: {KINDS} are accepted; this network is of another kind")
    if ranges and network.quantization is None:
        raise Int8Error("precision int8: this model has no ranges for it; `deeplab quantize MODEL PHOTOS` finds and writes them")
    return layers


def slow_int8() -> str | None:
    """A note for a person where int8 is asked of a processor without instructions for it; None elsewhere."""
    best = builds("int8")[:1]
    if best == ["avx512vnni"]:
        return None
    gain = "little faster than" if best == ["avx2"] else "slower than"
    return f"int8: this processor has no AVX-512 VNNI: the masks are the same, but it is {gain} float32"
