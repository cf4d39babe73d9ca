"""The training loop and what it is made of: presets, sampling, losses, optimizer, states.

No Ray: pipelines/train puts it on a cluster.
"""
