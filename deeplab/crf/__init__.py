"""Dense CRF refinement: label maps that follow the edges of the image (Krahenbuhl & Koltun, arXiv 1210.5644).

One Python class, the native engine, the same in torch, parameter sets; no networks and no files.
"""

from deeplab.crf.engine import DenseCRF, Refinement
from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters

__all__ = ["PARAMETER_SETS", "CRFParameters", "DenseCRF", "Refinement"]
