"""What a machine, a store and a cluster offer to this program, as findings that say what to do: `deeplab doctor`.

Nothing is repaired here, and the Prefect server is asked by flows/.
"""
