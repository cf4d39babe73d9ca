"""What a person starts and watches: the command line and the Prefect flows, a module a flow.

No tensors.
"""
