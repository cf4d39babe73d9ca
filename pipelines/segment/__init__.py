"""Segmenting an archive: plan, stream, stages of an image, commit, progress.

table/ stores the rows; deeplab/scoring scores an image.
"""
