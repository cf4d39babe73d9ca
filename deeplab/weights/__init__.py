"""Foreign weights into our networks: explicit key maps, every key accounted for."""

from deeplab.weights.families import FAMILIES, Imported, import_file, import_state_dict, import_weights
from deeplab.weights.fitting import WeightsError, load_backbone, read_safetensors
from deeplab.weights.maps import mobilenet_v2_keys
from deeplab.weights.pickled import read_pth
from deeplab.weights.start import initialise

__all__ = [
    "FAMILIES",
    "Imported",
    "WeightsError",
    "import_file",
    "import_state_dict",
    "import_weights",
    "initialise",
    "load_backbone",
    "mobilenet_v2_keys",
    "read_pth",
    "read_safetensors",
]
