"""How a processor computes a convolution: dilated ones as dense ones, oneDNN, folded batch norm.

The same sums as torch's own; no architecture.
"""
