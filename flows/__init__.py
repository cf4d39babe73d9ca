"""What a person starts and watches: the command line and the Prefect flows, one module per flow.

No tensors.
"""
