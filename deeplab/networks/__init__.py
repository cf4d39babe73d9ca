"""Architecture: backbones with atrous convolutions, heads, FCN, DeconvNet, attention.

No weights from elsewhere (weights/), no names and figures of papers (zoo/), no losses.
"""
