"""Masks out of the table: one module per format, listed in formats.py.

The report page is report/.
"""
