"""What a watcher of a flow sees in Prefect: progress, reports, curves.

The page of a whole table is in pipelines/report.
"""
