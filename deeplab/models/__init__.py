"""A model folder: weights, card, digest; the bundled models lie beside the code.

Where models are published and named by alias is pipelines/storage.
"""
