"""Ray and storage: how the work spreads over machines.

Modules here are shared by all rooms (DuckDB) or use several of them; no Prefect, no terminal.
"""
