"""A URI becomes files: local paths, S3, conditional PUT, their errors, the model registry.

What lies there (archives, tables) is not known here.
"""
