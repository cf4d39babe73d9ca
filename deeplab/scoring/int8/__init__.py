"""Networks in int8: their steps, the codes of weights and results, calibration, ResNet and VGG-16 through oneDNN.

The kernels for MobileNetV2 networks are deeplab.scoring.native; who uses both is deeplab.scoring.predictor.
"""
