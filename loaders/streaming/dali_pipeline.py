"""DALI's graph that decodes and scales, its queue, and what its messages say."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .dali_files import Bytes

ENCODED, ANCHOR, SHAPE = "encoded", "anchor", "shape"  # the graph's inputs
PIXEL = np.frombuffer(b"P6\n1 1\n255\n\0\0\0", np.uint8)  # the smallest image: one black pixel as PPM


def build_pipeline(
    *,
    batch_size: int,
    height: int,
    width: int,
    threads: int,
    ahead: int,
    mixed: bool = False,
    device_id: int | None = None,
) -> Any:
    """The graph (encoded, anchor, shape) -> uint8 [N, height, width, 3]: decode a box, scale it, as a DALI pipeline.

    The box is decoded alone, where the format allows it. EXIF orientation is not applied. Scaling is bilinear, with an
    antialiasing filter where it shrinks; a box that has the size already comes out as it is.

    Args:
        batch_size: most images in a batch.
        height, width: in pixels, of all images that come out.
        threads: of DALI's own.
        ahead: batches that are decoded before they are asked for.
        mixed: decode and scale on a GPU, in its JPEG engine where it has one. Chroma is interpolated, as on a CPU.
        device_id: the GPU; None decodes on the CPU, or, if `mixed`, gives a graph that can only be looked at.
    """
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline
    from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType

    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=ahead,
        output_dtype=DALIDataType.UINT8,
        output_ndim=3,
    )
    with pipeline:
        encoded = fn.external_source(name=ENCODED, dtype=DALIDataType.UINT8, ndim=1)
        anchor = fn.external_source(name=ANCHOR, dtype=DALIDataType.INT32, ndim=1)
        shape = fn.external_source(name=SHAPE, dtype=DALIDataType.INT32, ndim=1)
        images: Any = fn.decoders.image_slice(
            encoded,
            anchor,
            shape,
            axes=[0, 1],
            device="mixed" if mixed else "cpu",
            output_type=DALIImageType.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,  # its effect at a box's borders needs nvJPEG 13.3, by nvJPEG's release notes
        )
        images = fn.resize(images, size=[height, width], interp_type=DALIInterpType.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(images)
    return pipeline


def start(pipeline: Any, ahead: int) -> None:
    """Gets a pipeline's start over: DALI's first run begins `ahead` batches at once, each later one a single batch."""
    for _ in range(ahead):
        set_inputs(pipeline, [PIXEL], np.array([[0, 0, 1, 1]], np.int32))
    pipeline.schedule_run()
    for _ in range(ahead):
        take_images(pipeline)


def set_inputs(pipeline: Any, files: list[Bytes], boxes: npt.NDArray[np.int32]) -> None:
    """Queues a batch: N files, and their boxes [N, 4]."""
    pipeline.feed_input(ENCODED, files)
    pipeline.feed_input(ANCHOR, np.ascontiguousarray(boxes[:, :2]))
    pipeline.feed_input(SHAPE, np.ascontiguousarray(boxes[:, 2:]))


def begin(pipeline: Any, files: list[Bytes], boxes: npt.NDArray[np.int32]) -> None:
    """Queues a batch and begins it, once the pipeline's start is over."""
    set_inputs(pipeline, files, boxes)
    pipeline.schedule_run()


def take_images(pipeline: Any) -> Any:
    """The images of the oldest batch that was begun; waits for them."""
    (images,) = pipeline.share_outputs()
    pipeline.release_outputs()  # under DALI's default executor they keep their memory
    return images


def reason(error: Exception) -> str:
    """The line of a message of DALI's that says what happened."""
    lines = [line.strip() for line in str(error).partition("encountered:")[2].splitlines() if line.strip()]
    return lines[0].rstrip(" :") if lines else " ".join(str(error).split())[:200]
