"""Segmenting an archive: plan, stream, stages of an image, commit, progress.

How a row is stored is table/, how an image is scored deeplab/scoring.
"""
