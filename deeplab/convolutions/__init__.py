"""How a processor computes a convolution: dilated as dense, through oneDNN, with folded batch norm.

The sums are those of torch's own layers; no architecture.
"""
