"""What stands for a source whose data is not at hand: enough to know what its batches look like."""

import functools
import io
from typing import Any

import numpy as np

# Examples assumed of it, ImageNet's. An epoch is as long, which changes the schedule's constants
# and nothing else in a step.
SIZE = 1_281_167
PHOTOGRAPH = (240, 320)  # height and width, in pixels


class StandIn:
  """`source[i]` has `image`, `id`, and `label` and `text` where they are asked for.

  Attributes:
    num_classes: labels are 0; without classes there are none.
  """

  def __init__(
    self,
    num_classes: int = 0,
    text: bool = False,
    image: tuple[int, int, int] | None = None,
    size: int = SIZE,
  ):
    """Reads nothing.

    Args:
      num_classes: of its labels.
      text: whether examples have one.
      image: height, width and channels of images that are arrays; None for the bytes of a grey
        photograph as JPEG.
      size: examples.
    """
    self.num_classes, self._text, self._image, self._size = num_classes, text, image, size

  @property
  def classes(self) -> tuple[str, ...]:
    """Names of the classes: their numbers."""
    return tuple(map(str, range(self.num_classes)))

  def __len__(self) -> int:
    return self._size

  def __getitem__(self, i: int) -> dict[str, Any]:
    image = _jpeg() if self._image is None else np.full(self._image, 128, np.uint8)
    example = {'image': image, 'id': np.int64(i)}
    if self.num_classes:
      example['label'] = np.int32(0)
    if self._text:
      example['text'] = 'a photograph'
    return example


@functools.cache
def _jpeg() -> bytes:
  from PIL import Image

  buffer = io.BytesIO()
  Image.new('RGB', PHOTOGRAPH[::-1], (128, 128, 128)).save(buffer, 'JPEG')
  return buffer.getvalue()
