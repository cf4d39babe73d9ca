"""What a flow asks of its Prefect server: limits, prices, cleaning up after a run that was stopped.

The deployments are flows/deployments.py.
"""
