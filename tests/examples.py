"""How many examples Hypothesis tries: all in `make drills`, a quarter in `make test`."""

from __future__ import annotations

from hypothesis import settings

ALL, QUARTER = "all-examples", "a-quarter"  # profiles: --hypothesis-profile=all-examples
settings.register_profile(ALL, max_examples=100, deadline=None)
settings.register_profile(QUARTER, max_examples=25, deadline=None)
settings.load_profile(QUARTER)


def examples(count: int) -> int:
    """Of `count` examples as many as the profile takes."""
    return max(1, count * settings().max_examples // 100)
