"""The training loop and its parts: presets, sampling, losses, optimizer, states.

No Ray: pipelines/train puts it on a cluster.
"""
