"""ImageNet's other test sets by name, as TFDS prepares them or as folders of pictures.

| name                            | images | what they are                                        |
|---------------------------------|--------|------------------------------------------------------|
| `imagenet2012`                  | 50,000 | the validation set                                   |
| `imagenet2012_real`             | 50,000 | the same with all labels that fit (arXiv:2006.07159) |
| `imagenet_v2/matched-frequency` | 10,000 | collected anew (arXiv:1902.10811); there are also    |
|                                 |        | `/threshold-0.7` and `/topimages`                    |
| `imagenet_a`                    |  7,500 | a ResNet-50 errs on all; 200 classes (1907.07174)    |
| `imagenet_r`                    | 30,000 | art, toys, drawings; 200 classes (2006.16241)        |
| `imagenet_sketch`               | 50,889 | sketches (arXiv:1905.13549)                          |

TFDS gives all of them the 1000 labels of ImageNet in their usual order, those with 200 classes too,
so a model's 1000 logits fit without a table of names. Which 200 occur is published with the data
and stands in `class_maps`; accuracy is measured among these alone, as their authors do.

As folders they are what their authors publish, and so is ObjectNet, which TFDS has not: photographs
of things in odd places (Barbu et al. 2019, objectnet.dev), of which 113 of 313 classes are
ImageNet's.
"""

import operator
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vit_jax.choices import check_choice, listed
from vit_jax.data import class_maps
from vit_jax.data.decode import decode_image
from vit_jax.data.folder import Folder
from vit_jax.data.tfds import Tfds

NUM_CLASSES = 1000
# The two test sets that have only some of the classes.
IMAGENET_A, IMAGENET_R = class_maps.IMAGENET_A, class_maps.IMAGENET_R

# Name to the split that it has, and to the classes where they are not all.
TEST_SETS: dict[str, tuple[str, tuple[int, ...] | None]] = {
  'imagenet2012': ('validation', None),
  'imagenet2012_real': ('validation', None),
  'imagenet_v2/matched-frequency': ('test', None),
  'imagenet_v2/threshold-0.7': ('test', None),
  'imagenet_v2/topimages': ('test', None),
  'imagenet_a': ('test', IMAGENET_A),
  'imagenet_r': ('test', IMAGENET_R),
  'imagenet_sketch': ('test', None),
}


_WNIDS = {wnid: (i,) for wnid, i in class_maps.LABELS.items()}
# Name to the folders of classes and the labels that each may be called.
TEST_FOLDERS: dict[str, Mapping[str, tuple[int, ...]]] = {
  'imagenet': _WNIDS,
  'imagenet_v2': {str(i): (i,) for i in range(NUM_CLASSES)},
  'imagenet_r': {class_maps.IMAGENET[i]: (i,) for i in IMAGENET_R},
  'imagenet_a': {class_maps.IMAGENET[i]: (i,) for i in IMAGENET_A},
  'imagenet_sketch': _WNIDS,
  'objectnet': class_maps.OBJECTNET,
}
OBJECTNET_BORDER = 2  # what published evaluations cut off; the red line is of 1 pixel


def test_set(name: str, data_dir: str | None = None) -> Tfds:
  """The source of a test set: `dict(type='data.test_sets.test_set', name='imagenet_a')`.

  Args:
    name: one of `TEST_SETS`.
    data_dir: where TFDS keeps its data; see `Tfds`.

  Returns:
    A source with `label`, one of 1000, and an attribute `subset` that the evaluator
    `Classification` restricts answers to; that of `imagenet2012_real` is a `Real`.

  Raises:
    FileNotFoundError: the data is not prepared in `data_dir`.
    ValueError: an unknown name, with the choices, or data with other labels.
  """
  split, subset = TEST_SETS[check_choice('test set', name, TEST_SETS)]
  source = Real(data_dir) if name == 'imagenet2012_real' else Tfds(name, split, data_dir)
  if source.num_classes != NUM_CLASSES:
    raise ValueError(
      f'{name} has {source.num_classes} classes in its description, not the {NUM_CLASSES} of '
      'ImageNet: it was not prepared by TFDS'
    )
  source.subset = subset
  return source


class Real(Tfds):
  """ImageNet's validation set with ReaL labels: `label` is multi-hot, [1000] float32.

  Beyer et al. 2020, arXiv:2006.07159. An answer is right if it is among the labels. 3,163 images
  have none and do not count, which the attribute `skip_unlabelled` tells `Classification`.
  """

  skip_unlabelled = True

  def __init__(self, data_dir: str | None = None):
    """Finds the prepared data; raises as `Tfds` does."""
    super().__init__('imagenet2012_real', 'validation', data_dir, label_key=None)
    feature = self._open().info.features['real_label'].feature
    self.classes, self.num_classes = tuple(feature.names), feature.num_classes
    self._keys = ('image', 'real_label')

  def __getitem__(self, i: int) -> dict[str, Any]:
    """As that of `Tfds`, but for the label."""
    example = super().__getitem__(i)  # its `label` is all that fit, [n]
    label = np.zeros(self.num_classes, np.float32)
    label[example['label']] = 1
    return {**example, 'label': label}


def test_folder(name: str, path: str) -> 'ClassFolders':
  """The source of a test set as published: `dict(type='data.test_sets.test_folder', ...)`.

  Args:
    name: one of `TEST_FOLDERS`.
    path: the folder of the classes' folders: 'n01440764', ... for most; '0' to '999', the labels,
      for `imagenet_v2`; 'alarm_clock', ... for `objectnet`, its `images`.

  Returns:
    A source with `label` and an attribute `subset`, as that of `test_set`.

  Raises:
    FileNotFoundError: no such folder, or no picture in it.
    ValueError: an unknown name, with the choices, or a folder that is none of the classes.
  """
  labels = TEST_FOLDERS[check_choice('test set', name, TEST_FOLDERS)]
  return ClassFolders(path, labels, border=OBJECTNET_BORDER if name == 'objectnet' else 0)


class ClassFolders:
  """Folders of pictures, each of one class, whose names say which of ImageNet's labels it is.

  `label` is a number; where a folder may be called several, it is multi-hot, [1000] float32, and an
  answer is right if it is among them. Of the best answer among all labels that occur, that is the
  same as giving each folder the largest score of its labels, as published evaluations of ObjectNet
  do.

  Attributes:
    classes: the WordNet ids of ImageNet's 1000 classes.
    num_classes: 1000.
    subset: the labels that answers are chosen from; None for all.
  """

  def __init__(self, path: str, labels: Mapping[str, Sequence[int]], border: int = 0):
    """Lists the files; none is opened.

    Args:
      path: the folder of the classes' folders. Some may be missing.
      labels: the labels of each folder that there may be; pictures of a folder with none are left
        out.
      border: pixels to cut off on each side.

    Raises:
      FileNotFoundError: no such folder, or no picture in it.
      ValueError: a folder that is not in `labels`, or none that has a label.
    """
    self._folder, self._border = Folder(path, split=''), border
    if unknown := [name for name in self._folder.classes if name not in labels]:
      raise ValueError(
        f'{path} has folders {listed(unknown)}, which are no classes of this test set; it has '
        f'{listed(labels, 3)}'
      )
    names = [
      os.path.basename(os.path.dirname(self._folder.name(i))) for i in range(len(self._folder))
    ]
    self._positions = np.array([i for i, name in enumerate(names) if labels[name]], np.int64)
    if not len(self._positions):
      raise ValueError(f"no folder in {path} is one of ImageNet's classes: it has {listed(names)}")
    self._labels = [tuple(labels[name]) for name in self._folder.classes]
    self._several = any(len(one) > 1 for one in labels.values())
    self.classes, self.num_classes = class_maps.IMAGENET, NUM_CLASSES
    used = sorted({i for one in labels.values() for i in one})
    self.subset = None if len(used) == NUM_CLASSES else tuple(used)

  def __len__(self) -> int:
    return len(self._positions)

  def __getitem__(self, i: int) -> dict[str, Any]:
    example = self._folder[self._position(i)]
    labels = self._labels[example['label']]
    example['label'] = np.int32(labels[0])
    if self._several:
      example['label'] = np.zeros(NUM_CLASSES, np.float32)
      example['label'][list(labels)] = 1
    if self._border:
      inner = slice(self._border, -self._border)
      example['image'] = decode_image(example['image'])[inner, inner]
    return example

  def name(self, i: int) -> str:
    """The file's path."""
    return self._folder.name(self._position(i))

  def _position(self, i: int) -> int:
    if not 0 <= operator.index(i) < len(self):
      raise IndexError(f'example {i} of {len(self)}')
    return int(self._positions[i])
