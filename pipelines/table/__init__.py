"""The results table: schema, part files, commit, counts, snapshots.

Checking and shrinking it is upkeep/.
"""
