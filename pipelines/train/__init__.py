"""Training, evaluation and CRF search on one process or a Ray cluster; packed data sets.

The loop itself is deeplab/training.
"""
