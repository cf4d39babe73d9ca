"""Predictions against labels: metrics and pictures of them.

Spreading it over a cluster is pipelines/train.
"""
