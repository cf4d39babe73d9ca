"""A wheel's engines work with numpy alone: run by cibuildwheel after installation, and by hand in a clean environment."""

import numpy as np

from deeplab.crf import DenseCRF
from deeplab.scoring.native import _mobilenet

image = np.zeros((40, 60, 3), np.uint8)
image[:, 30:] = 200
scores = np.zeros((3, 6, 9), np.float16)
scores[1, :, :4], scores[2, :, 4:] = 2, 2
for mode in ("fast", "exact"):
    labels = DenseCRF(mode).labels(image, scores, stride=8)  # type: ignore[arg-type]
    assert (labels[:, :30] == 1).all()
    assert (labels[:, 30:] == 2).all()
assert ("int8", "baseline") in _mobilenet.builds
print("the engines work")
