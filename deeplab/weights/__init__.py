"""Loads foreign weights into our networks through explicit key maps that account for every key.

Our own model folders are in models/.
"""

from deeplab.weights.foreign_networks import FAMILIES, Imported, import_file, import_state_dict, import_weights
from deeplab.weights.initialisation import initialise, known_classes
from deeplab.weights.key_maps import mobilenet_v2_keys
from deeplab.weights.pth_files import read_pth
from deeplab.weights.strict_loading import WeightsError, load_backbone, read_safetensors

__all__ = [
    "FAMILIES",
    "Imported",
    "WeightsError",
    "import_file",
    "import_state_dict",
    "import_weights",
    "initialise",
    "known_classes",
    "load_backbone",
    "mobilenet_v2_keys",
    "read_pth",
    "read_safetensors",
]
