"""The commands of the `deeplab` program, grouped by what they work on.

Nothing that another layer needs.
"""
