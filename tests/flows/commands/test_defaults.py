"""An option is defined once: the command line, the flow's form and the job have it from there."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import typer
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from deeplab.models import checkpoint
from deeplab.scoring.settings import Scoring
from deeplab.training.loop import Execution
from deeplab.training.presets import TrainingConfig, finetune
from flows.cli import app
from flows.commands.parameters import place, with_options
from pipelines.cluster import ray_jobs
from pipelines.options import (
    BenchmarkOptions,
    EvaluateOptions,
    QuantizeOptions,
    RegisteredTraining,
    SegmentOptions,
    TrainOptions,
    TuneOptions,
)
from pipelines.options.training import PresetOptions

KINDS = [BenchmarkOptions, SegmentOptions, EvaluateOptions, TuneOptions, QuantizeOptions, TrainOptions, RegisteredTraining]
PLACES = {"archive": "a", "results": "r", "model": "m", "dataset": "d", "model_out": "o", "out": "o", "photos": "p"}


class Tiny(SegmentOptions):
    """`segment` with one more option."""

    sharpen: bool = Field(default=False, description="Sharpen the masks")


def command_of(kind: type[BaseModel], received: list[BaseModel]) -> typer.Typer:
    """A program whose only command has the options of `kind`."""

    def run(options: BaseModel) -> None:
        received.append(options)

    run.__annotations__["options"] = kind
    program = typer.Typer()
    program.command()(with_options(run))
    return program


def needed(kind: type[BaseModel]) -> dict[str, str]:
    return {name: PLACES[name] for name, field in kind.model_fields.items() if field.is_required()}


@pytest.mark.parametrize("kind", KINDS)
def test_a_command_without_options_has_the_defaults_of_the_schema(kind: type[BaseModel]) -> None:
    received: list[BaseModel] = []
    done = CliRunner().invoke(command_of(kind, received), list(needed(kind).values()))
    assert done.exit_code == 0, done.output
    assert received == [kind(**needed(kind))]


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (
            SegmentOptions,
            [
                "(at least 193 and at most 8193). [default: 1025]",
                "(above 0 and at most 86400). [default: 60]",
                "--model -m",
                "[default: crf]",
            ],
        ),
        (
            EvaluateOptions,
            ["auto, cpu or cuda. [default: auto]", "--trimap <int,...>", "(at least 1 and at most 1000)", "[default: no-crf]"],
        ),
        (BenchmarkOptions, ["[MODEL]", "[default: voc]", "--count -n", "default synthetic ones"]),
        (TuneOptions, ["--write --no-write", "(at least 0 and at most 6). [default: 2]"]),
        (TrainOptions, ["0 is off (at least 0 and below 1).", "(at least 1).", "with --min-workers", "finetune"]),
        (RegisteredTraining, ["MODEL_OUT", "on --val-split is not worse", "[default: production]"]),
    ],
)
def test_help_shows_every_option_with_what_is_accepted_and_the_default(kind: type[BaseModel], texts: list[str]) -> None:
    page = " ".join(CliRunner().invoke(command_of(kind, []), ["--help"], env={"COLUMNS": "400"}).output.split())
    for text in [*texts, *(place(kind, name) for name in kind.model_fields)]:
        assert text in page


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--scales", "0.5, 1"], {"scales": (0.5, 1.0)}),
        (["--include", "a", "--include", "b"], {"include": ("a", "b")}),
        (["--no-crf", "--flip"], {"crf": False, "flip": True}),
        (["--limit", "3", "--commit-every", "0.5", "-m", "x"], {"limit": 3, "commit_every": 0.5, "model": "x"}),
    ],
)
def test_what_is_typed_becomes_the_value_of_the_options_type(words: list[str], values: dict[str, object]) -> None:
    received: list[BaseModel] = []
    CliRunner().invoke(command_of(SegmentOptions, received), ["a", "r", *words])
    assert received == [SegmentOptions(archive="a", results="r", **values)]  # type: ignore[arg-type]


def test_an_option_that_is_added_to_the_definition_is_on_the_command_line_in_the_form_and_in_the_job() -> None:
    received: list[BaseModel] = []
    program = command_of(Tiny, received)
    page = CliRunner().invoke(program, ["--help"], env={"COLUMNS": "200"}).output
    assert "--sharpen" in page and "Sharpen the masks." in page
    CliRunner().invoke(program, ["a", "r", "--sharpen"])
    assert received == [Tiny(archive="a", results="r", sharpen=True)]

    def flow(options: Tiny) -> None:
        pass

    flow.__annotations__["options"] = Tiny
    assert parameter_schema(flow).model_dump()["definitions"]["Tiny"]["properties"]["sharpen"]["description"] == "Sharpen the masks"
    assert json.loads(received[0].model_dump_json(exclude_defaults=True))["sharpen"] is True
    assert ray_jobs.job_name("segment", received[0]) != ray_jobs.job_name("segment", Tiny(archive="a", results="r"))


def test_commands_take_their_options_from_the_definition() -> None:
    """None of them lists an option by itself."""
    commands: dict[str, type[BaseModel]] = {
        "segment": SegmentOptions,
        "benchmark": BenchmarkOptions,
        "train": TrainOptions,
        "evaluate": EvaluateOptions,
        "tune-crf": TuneOptions,
        "quantize": QuantizeOptions,
        "run segment": SegmentOptions,
        "run train": RegisteredTraining,
        "run evaluate": EvaluateOptions,
        "run refresh": SegmentOptions,
    }
    for words, kind in commands.items():
        command: Any = typer.main.get_command(app)
        for word in words.split():
            command = command.commands[word]
        names = [parameter.name for parameter in command.params]
        assert names[: len(kind.model_fields)] == list(kind.model_fields), words


def test_workers_get_objects_that_are_filled_from_the_options_and_have_the_same_defaults() -> None:
    plain, given = {"archive": "a", "results": "r"}, {"scales": (0.5, 1.0), "flip": True, "tile": 257, "overlap": 32}
    training = TrainOptions(dataset="d", model_out="o")
    model = checkpoint.load("pets")
    assert SegmentOptions(**plain).scoring(model) == EvaluateOptions(model="m", dataset="d").scoring(model) == Scoring()
    assert SegmentOptions(**plain, **given).scoring(model) == Scoring(**given)
    assert training.of_kind(Execution) == Execution()
    for kind, options in ((Scoring, SegmentOptions), (Execution, TrainOptions)):
        assert {field.name for field in fields(kind)} <= set(options.model_fields)
    changed = training.model_copy(update={"clip_norm": 0.0, "seed": 3})
    assert changed.of_kind(TrainingConfig, finetune()) == replace(finetune(), clip_norm=0.0, seed=3)


def test_every_override_of_a_preset_is_a_field_of_the_training_configuration() -> None:
    assert set(PresetOptions.model_fields) <= set(TrainingConfig.__dataclass_fields__)
