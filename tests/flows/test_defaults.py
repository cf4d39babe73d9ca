"""The command's defaults and the options' are written in two places; they must say the same."""

from __future__ import annotations

import inspect

from flows.commands.segment import segment
from pipelines.options import SegmentOptions


def test_the_command_has_every_option_with_the_same_default() -> None:
    parameters = inspect.signature(segment).parameters
    for name, field in SegmentOptions.model_fields.items():
        if field.is_required():
            continue
        shown = parameters[name].default
        if name == "scales":
            shown = tuple(float(part) for part in shown.split(","))
        assert (shown or None) == (field.default or None), name
    assert set(parameters) == {*SegmentOptions.model_fields, "as_json"}
