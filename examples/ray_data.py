"""Masks inside a Ray Data pipeline of your own: Parquet with image bytes in, Parquet with masks out.

    python examples/ray_data.py photos.parquet masks/ [MODEL]

Without a file of yours, `python examples/ray_data.py` makes one from the example photos.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipelines.ray_data import Scorer, Segmenter, refine

HERE = Path(__file__).parent


def masks_of(photos: ray.data.Dataset, model: str) -> ray.data.Dataset:
    """The dataset with the columns of masks. `photos` has the bytes of image files in its column `bytes`."""
    chosen = {"model": model}
    if ray.cluster_resources().get("GPU"):  # GPUs score, and every core of the cluster refines
        scored = photos.map_batches(
            Scorer,
            fn_constructor_kwargs=chosen,
            batch_size=64,
            batch_format="pyarrow",
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=8),
        )
        return scored.map_batches(refine, fn_kwargs=chosen, batch_size=16, batch_format="pyarrow")
    return photos.map_batches(
        Segmenter,
        fn_constructor_kwargs=chosen,
        batch_size=16,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, int(ray.cluster_resources()["CPU"]) - 1)),
    )


def cats(batch: pa.Table) -> pa.Table:
    """A step of your own behind it: what share of each photo is cat."""
    shares = []
    for counts in batch["class_pixels"].to_pylist():
        pixels = dict(counts or {})
        shares.append(pixels.get("cat", 0) / sum(pixels.values()) if pixels else None)
    return batch.append_column("cat", pa.array(shares, pa.float64()))


def example_photos(target: Path) -> Path:
    """A Parquet file of the example photos: `name` and `bytes`."""
    photos = sorted((HERE / "photos").glob("*.jpg"))
    table = {"name": [photo.name for photo in photos], "bytes": [photo.read_bytes() for photo in photos]}
    pq.write_table(pa.table(table), target, row_group_size=4)
    return target


def main(source: str = "", target: str = "masks", model: str = "voc") -> None:
    photos = ray.data.read_parquet(source or str(example_photos(Path("photos.parquet"))))
    masks = masks_of(photos, model).map_batches(cats, batch_format="pyarrow").drop_columns(["bytes"])
    masks.write_parquet(target)
    print(f"{target}: {ray.data.read_parquet(target).count()} photos with their masks")


if __name__ == "__main__":
    main(*sys.argv[1:])
