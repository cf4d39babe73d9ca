"""MobileNetV2 networks on this package's own kernels, in bfloat16 and int8: what a network is made of, and the compiled engine.

What the codes of int8 mean is deeplab.scoring.int8; who uses the engine is deeplab.scoring.predictor.
"""
