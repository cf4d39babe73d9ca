"""The results table: schema, part files, commit, counts, snapshots.

Checking and compacting it is upkeep/.
"""
