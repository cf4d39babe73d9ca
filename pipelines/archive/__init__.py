"""What images there are: listing, lists, inventories, tar, zip and Parquet shards, and an image's bytes.

No pixels, no results.
"""
