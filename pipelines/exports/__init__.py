"""The formats that masks are exported to: a file each, listed in formats.py."""
