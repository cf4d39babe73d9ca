"""Ray and storage: how the work spreads over machines.

Modules here are what all rooms share (options, DuckDB) and what stands on them; no Prefect, no terminal.
"""
