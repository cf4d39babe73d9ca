"""Image bytes to pixels: decoding, TIFF, bit depths, GDAL, rows of large images.

No networks, no label maps (masks.py).
"""
