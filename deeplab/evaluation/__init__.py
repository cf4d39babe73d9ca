"""Predictions against labels: metrics and their figures.

Evaluation on a cluster is pipelines/train.
"""
