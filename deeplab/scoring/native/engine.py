"""The compiled engine, and the networks that it computes instead of torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from torch import nn

from deeplab.networks.network import SegmentationNetwork, mixed_grids
from deeplab.scoring.int8.codes import as_pixels
from deeplab.scoring.native.int8 import int8_program
from deeplab.scoring.native.layers import layers_of
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
        if self.coded:
            x = as_pixels(x, self.normalization)
        elif x.dtype != torch.uint8:
            x = x.float()
        pixels = np.ascontiguousarray(x.permute(0, 2, 3, 1).numpy())
        rows, columns = self.engine.size_of_scores(*pixels.shape[1:3])
        out = np.empty((len(pixels), self.classes, rows, columns), np.float32)
        self.engine.run(pixels, out, min(64, torch.get_num_threads()))
        return mixed_grids(torch.from_numpy(out), self.grids)


def native_network(
    network: SegmentationNetwork, precision: str, device: torch.device = CPU, build: str | None = None
) -> NativeNetwork | None:
    """The network on this package's kernels; None where torch computes it: other kinds, precisions, processors and devices.

    build: one of `builds(precision)`, by default the best; none for bfloat16 on a processor with AMX. Int8Error for ranges of
    another network; `deeplab.scoring.int8.choice` says what else int8 needs.
    """
    names = builds(precision) if device.type == "cpu" else []
    # oneDNN's products on AMX's tiles are ahead: `pets` on the examples 0.021 s, here 0.028 on a Zen 4
    if not names or (precision == "bfloat16" and build is None and torch.cpu._is_amx_tile_supported()):
        return None
    known = layers_of(network)
    if known is None:
        return None
    if precision == "int8":
        assert network.quantization is not None
        program = int8_program(known, network.quantization)
    else:
        program = bfloat16_program(known)
    return NativeNetwork(network, program, build or names[0])


def slow_int8() -> str | None:
    """A note for a person where int8 is asked of a processor without instructions for it; None elsewhere."""
    best = builds("int8")[:1]
    if best in ([], ["avx512vnni"]):
        return None
    gain = "little faster than" if best == ["avx2"] else "slower than"
    return f"int8: this processor has no AVX-512 VNNI: the masks are the same, but it is {gain} float32"
