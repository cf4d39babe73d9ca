"""Masks out of the table: one format a file, listed in formats.py.

A page to look at is report/.
"""
