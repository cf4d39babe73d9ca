"""The report page of a results table: a static page, or served with all rows.

A flow's report in Prefect is flows/watching.
"""
