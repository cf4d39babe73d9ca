"""What a person sees and sends in a terminal: progress bars, one-line errors, signals, the environment.

No Prefect.
"""
