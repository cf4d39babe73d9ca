"""Ray: start or join it, submit and follow jobs, map a function over it.

What a job does is not known here.
"""
