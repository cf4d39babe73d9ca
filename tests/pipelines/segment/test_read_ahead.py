"""Reading ahead in windows whose pixels are bounded, and the register of images that die with their process."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deeplab.images.decoding import decode
from pipelines.segment import read_ahead
from pipelines.segment.poison import DEATHS, Register, Suspects, given_up
from pipelines.segment.read_ahead import WINDOW, Loader
from pipelines.storage.filesystems import read_versioned
from tests.material import make_archive, photo

Image = tuple[str, str, int]  # uri, version, bytes


@pytest.fixture
def images(tmp_path: Path) -> list[Image]:
    return [entry(path) for path in sorted(make_archive(tmp_path / "photos", 40).rglob("*.jpg"))]


def entry(path: Path) -> Image:
    return path.as_uri(), read_versioned(path.as_uri())[1], path.stat().st_size


def test_every_image_comes_once_in_order_with_its_bytes_and_pixels(images: list[Image]) -> None:
    windows = list(Loader(10**6).windows(images))
    assert [len(window) for window in windows] == [16, 16, 8]
    assert [image.uri for window in windows for image in window] == [uri for uri, _, _ in images]
    for image in windows[2]:
        assert image.error is None
        assert np.array_equal(image.pixels, decode(read_versioned(image.uri)[0]))


def test_a_window_holds_no_more_pixels_than_allowed_unless_one_image_does(
    images: list[Image], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    large = tmp_path / "large.jpg"
    large.write_bytes(photo(1, 200, 300))
    images.insert(5, entry(large))
    monkeypatch.setattr(read_ahead, "WINDOW_PIXELS", 15_000)  # three of the small ones
    windows = list(Loader(10**6).windows(images))
    assert [image.uri for window in windows for image in window] == [uri for uri, _, _ in images]
    for window in windows:
        assert len(window) == 1 or sum(image.pixels.shape[0] * image.pixels.shape[1] for image in window) <= 15_000
    assert [large.as_uri()] in [[image.uri for image in window] for window in windows]
    assert max(map(len, windows)) == 3


def test_what_is_being_decoded_is_told_before(images: list[Image]) -> None:
    told: list[list[str]] = []
    for window in Loader(10**6).windows(images, told.append):
        assert {image.uri for image in window} <= set(told[-1]) | set(told[-2] if len(told) > 1 else [])
    assert set().union(*told) == {uri for uri, _, _ in images}
    assert max(map(len, told)) <= 2 * WINDOW


def test_a_broken_image_and_a_missing_one_end_with_their_errors(tmp_path: Path, images: list[Image]) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(photo(0)[:200])
    window = next(Loader(10**6).windows([(broken.as_uri(), "v", 200), (f"{tmp_path.as_uri()}/gone.jpg", "v", 9), images[0]]))
    assert [image.pixels is None for image in window] == [True, True, False]
    assert window[0].error.startswith("decode: damaged or truncated")
    assert window[1].error.startswith("read: No such file")


def test_encoded_bytes_in_memory_are_bounded_and_a_larger_image_waits_until_it_is_alone(
    images: list[Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {uri: size for uri, _, size in images}
    monkeypatch.setattr(read_ahead, "READ_BYTES", sum(size for _, _, size in images[:5]))
    sizes[images[7][0]] = 10**9
    listed = [(uri, version, sizes[uri]) for uri, version, _ in images]
    reading: list[str] = []
    loader = Loader(10**6)
    monkeypatch.setattr(loader, "_read", lambda uri, version: reading.append(uri) or Loader._read(loader, uri, version))
    done: list[str] = []
    for window in loader.windows(listed):
        here = [image.uri for image in window]
        ahead = [uri for uri in reading if uri not in done]
        assert ahead == [images[7][0]] or sum(sizes[uri] for uri in ahead) <= read_ahead.READ_BYTES
        assert set(here) <= set(ahead)
        done += here
        window.clear()
    assert done == [uri for uri, _, _ in images]


def test_images_above_a_limit_are_left_to_be_read_in_bands_or_end_with_an_error(images: list[Image]) -> None:
    pixels = 60 * 80
    assert all(image.pixels is not None for image in next(Loader(pixels, pixels).windows(images[:3])))
    first, *_ = next(Loader(pixels, pixels - 1).windows(images[:1]))
    assert (first.error, first.pixels) == (None, None)
    assert first.header.pixels == pixels
    assert first.encoded == read_versioned(first.uri)[0]
    first, *_ = next(Loader(pixels - 1, 100).windows(images[:1]))
    assert first.error == "decode: 60 x 80 is 4,800 pixels, over the limit of 4,799 (--max-pixels raises it)"


@pytest.fixture
def register(running_ray: None) -> Iterator[Any]:
    import ray

    actor = ray.remote(num_cpus=0)(Register).remote()
    yield actor
    ray.kill(actor)


def test_deaths_are_narrowed_down_to_one_image(register: Any) -> None:
    """A block of ten in which the seventh image kills: the group, then that image alone, until it is given up."""
    import ray

    @ray.remote(num_cpus=0, max_retries=20)
    def work(actor: Any, log: Path) -> list[str]:
        block = [f"image {index}" for index in range(10)]
        done = []
        with Suspects(actor, "test", block[0]) as suspects, log.open("a") as stream:
            stream.write("x")
            stream.flush()
            alone = sorted(suspects.deaths, key=lambda uri: -suspects.deaths[uri])
            for group in [*([uri] for uri in alone), [uri for uri in block if uri not in suspects.deaths]]:
                if len(group) == 1 and given_up(suspects.deaths.get(group[0], 0)):
                    continue
                suspects.write_note(group)
                if block[6] in group:
                    os.kill(os.getpid(), signal.SIGKILL)
                done += group
        return done

    with tempfile.NamedTemporaryFile() as log:
        done = ray.get(work.remote(register, Path(log.name)), timeout=120)
        attempts = len(Path(log.name).read_text())
    assert sorted(done) == [f"image {index}" for index in (0, 1, 2, 3, 4, 5, 7, 8, 9)]
    assert attempts == 1 + DEATHS + 1  # the group, the image alone, and the attempt that gives it up
    with Suspects(register, "test", "image 0") as suspects:
        assert suspects.deaths == {}


def test_a_block_that_ended_or_failed_with_an_exception_blames_nobody(register: Any) -> None:
    with suppress(ValueError), Suspects(register, "test", "block") as suspects:
        suspects.write_note(["a", "b"])
        raise ValueError
    assert Suspects(register, "test", "block").deaths == {}
    assert given_up(0) is None


def test_a_register_that_is_gone_holds_nothing_up(register: Any) -> None:
    import ray

    ray.kill(register)
    with Suspects(register, "test", "block") as suspects:
        suspects.write_note(["a"])
        assert suspects.deaths == {}
