"""Images to scores: batches, scales, tiles, proposals, and how fast that is.

Refining the label maps of scores is crf/.
"""
