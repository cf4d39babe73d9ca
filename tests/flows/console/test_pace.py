"""What a training says of its duration, from the times in its reports alone."""

from __future__ import annotations

from deeplab.evaluation.metrics import Summary
from deeplab.training.loop import TrainingProgress
from flows.console.pace import TrainingPace, course, duration

VALIDATED: Summary = {"mean_iou": 0.5}  # type: ignore[typeddict-item]


def test_the_time_left_counts_steps_and_validations_by_what_they_took() -> None:
    """20 steps of 2 s, and a validation of 30 s after every tenth: at step 11 there are 9 steps and one validation to come."""
    pace, lines, at = TrainingPace(), [], 100.0
    for step in range(1, 12):
        at += 2.0 + 30.0 * (step == 11)
        validation = VALIDATED if step == 10 else None
        lines.append(pace.add(TrainingProgress(step, 20, 1.0, 0.1, validation, at=at, validations_left=2 - step // 10)))
    assert [line for line in lines if line] == ["2.00 s a step: about 28 s for the remaining 14 steps, besides 2 validations"]
    assert lines[5]  # after the first step and five more
    assert pace.left() == 9 * 2 + 30


def test_a_job_that_reports_every_third_step_is_timed_per_step() -> None:
    pace = TrainingPace()
    for step in (3, 6, 9):
        pace.add(TrainingProgress(step, 30, 1.0, 0.1, at=2.0 * step))
    assert pace.left() == 42


def test_a_training_of_two_steps_has_its_line_too() -> None:
    pace = TrainingPace()
    assert [bool(pace.add(TrainingProgress(step, 2, 1.0, 0.1, at=1.0 * step))) for step in (1, 2)] == [False, True]


def test_the_course_is_drawn_from_the_first_to_the_last_validation() -> None:
    assert course([2.0, 1.0, 0.0], [0.1, 0.2, 0.3]) == "loss 2.000 █▅▁ 0.000, mIoU 0.100 ▁▅█ 0.300"
    assert course([1.0], [0.5]) == "loss 1.000 ▁ 1.000, mIoU 0.500 ▁ 0.500"
    assert [duration(s) for s in (5, 200, 18720)] == ["5 s", "3 min 20 s", "5 h 12 min"]


def test_the_share_of_waiting_is_of_the_steps_times_and_says_what_helps() -> None:
    pace = TrainingPace()
    assert pace.waiting() == ""
    for step in range(1, 22):
        pace.add(
            TrainingProgress(step, 300, 1.0, 0.1, at=2.0 * step, waited=30.0 if step == 1 else 0.5)
        )  # the first starts the loaders
    assert pace.waiting() == "25% of the time waiting for data: more --loaders help"
    for step in range(22, 130):
        pace.add(TrainingProgress(step, 300, 1.0, 0.1, at=2.0 * step, waited=0.02))
    assert pace.waiting() == "1% of the time waiting for data"
