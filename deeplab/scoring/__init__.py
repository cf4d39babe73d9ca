"""Images to scores: batches, scales, tiles, proposals, and what that costs.

Scores to finer label maps are crf/.
"""
