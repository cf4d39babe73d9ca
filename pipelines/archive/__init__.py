"""The images of an archive: listing, lists, inventories, tar, zip and Parquet shards, and the bytes of an image.

No pixels, no results.
"""
