"""The report page: what a results table holds, as a static page or served with all of its rows.

A flow's report in Prefect is flows/watching.
"""
