"""What a flow asks of its Prefect server: limits, prices, cleaning up after a stopped run.

Deployments are in flows/deployments.py.
"""
