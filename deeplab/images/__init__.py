"""Image bytes to pixels: decoding, TIFF, HEIF, JPEG XL, bit depths, GDAL, rows of large images.

No networks, no label maps (masks.py).
"""
