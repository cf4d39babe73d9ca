"""What a user could take instead of this project, measured beside it: `scoring.py --peers` and `whole.py --peers`.

Each peer is a process of its own (`engines`, `ray_pipeline`, `stages`), which takes turns with this project by the protocol of
`turns`. `environment` makes what they need, under build/peers.
"""
