"""What computes a network on a CPU instead of torch's layers, and whether it can be computed in int8."""

from __future__ import annotations

import torch

from deeplab.networks.network import SegmentationNetwork
from deeplab.scoring.int8.codes import Int8Error
from deeplab.scoring.int8.networks import KINDS, steps_of
from deeplab.scoring.int8.onednn_network import OnednnNetwork, available
from deeplab.scoring.native.engine import CPU, NativeNetwork, builds, native_network
from deeplab.scoring.native.layers import layers_of


def cpu_network(network: SegmentationNetwork, precision: str, device: torch.device = CPU) -> NativeNetwork | OnednnNetwork | None:
    """The network on this package's kernels, or in int8 through oneDNN; None where torch's layers compute it: other kinds,
    precisions, processors and devices.

    Int8Error if int8 is wanted, but the network is of another kind, or its ranges are not known.
    """
    if precision == "int8":
        require_int8(network, device)
    native = native_network(network, precision, device)
    if native is not None or precision != "int8":
        return native
    steps = steps_of(network)
    assert steps is not None and network.quantization is not None
    return OnednnNetwork(network, steps, network.quantization)


def require_int8(network: SegmentationNetwork, device: torch.device = CPU, ranges: bool = True) -> None:
    """Int8Error with what to do, if a network cannot be computed in int8 here.

    ranges: whether it must have a quantization.
    """
    if device.type != "cpu":
        raise Int8Error(f"precision int8: it is for CPUs; on {device.type} float16 is accepted")
    if steps_of(network) is None:
        raise Int8Error(f"precision int8: {KINDS} are accepted; this network is of another kind")
    if layers_of(network) is not None:
        if not builds("int8"):
            raise Int8Error("precision int8: the scoring engine is not built for this Python; install the package with pip")
    elif not available():
        raise Int8Error("precision int8: this network needs a processor with VNNI, and a PyTorch with oneDNN; float32 is accepted")
    if ranges and network.quantization is None:
        raise Int8Error("precision int8: this model has no ranges for it; `deeplab quantize MODEL PHOTOS` finds and writes them")
