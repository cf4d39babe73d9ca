"""The science: networks, scoring, CRF refinement, training and metrics; torch and numpy only.

Modules here are what every room of this floor may use: classes, masks, files, names, errors. No Ray, no storage, no Prefect.
"""
