"""Labelled images: data set layouts, inspection, augmentation and crops.

Which crop is trained on when is training/.
"""
