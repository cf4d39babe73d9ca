"""Dense CRF refinement: label maps that follow the edges of the image (Krahenbuhl & Koltun, arXiv 1210.5644).

One face, the native engine, a torch twin, parameter sets; no networks and no files.
"""

from deeplab.crf.engine import DenseCRF, Refinement
from deeplab.crf.parameters import PARAMETER_SETS, CRFParameters

__all__ = ["PARAMETER_SETS", "CRFParameters", "DenseCRF", "Refinement"]
