"""What a watcher of a flow sees in Prefect: progress and reports.

The page of a whole table is in pipelines/report.
"""
