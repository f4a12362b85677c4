"""ImageNet's other test sets by name, as TFDS prepares them.

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
and stands below; accuracy is measured among these alone, as their authors do.
"""

from typing import Any

import numpy as np

from vit_jax.choices import check_choice
from vit_jax.data.tfds import Tfds

NUM_CLASSES = 1000
# github.com/hendrycks/natural-adv-examples, eval.py
IMAGENET_A = (
  6, 11, 13, 15, 17, 22, 23, 27, 30, 37, 39, 42, 47, 50, 57, 70, 71, 76, 79, 89, 90, 94, 96, 97,
  99, 105, 107, 108, 110, 113, 124, 125, 130, 132, 143, 144, 150, 151, 207, 234, 235, 254, 277,
  283, 287, 291, 295, 298, 301, 306, 307, 308, 309, 310, 311, 313, 314, 315, 317, 319, 323, 324,
  326, 327, 330, 334, 335, 336, 347, 361, 363, 372, 378, 386, 397, 400, 401, 402, 404, 407, 411,
  416, 417, 420, 425, 428, 430, 437, 438, 445, 456, 457, 461, 462, 470, 472, 483, 486, 488, 492,
  496, 514, 516, 528, 530, 539, 542, 543, 549, 552, 557, 561, 562, 569, 572, 573, 575, 579, 589,
  606, 607, 609, 614, 626, 627, 640, 641, 642, 643, 658, 668, 677, 682, 684, 687, 701, 704, 719,
  736, 746, 749, 752, 758, 763, 765, 768, 773, 774, 776, 779, 780, 786, 792, 797, 802, 803, 804,
  813, 815, 820, 823, 831, 833, 835, 839, 845, 847, 850, 859, 862, 870, 879, 880, 888, 890, 897,
  900, 907, 913, 924, 932, 933, 934, 937, 943, 945, 947, 951, 954, 956, 957, 959, 971, 972, 980,
  981, 984, 986, 987, 988,
)  # fmt: skip
# github.com/hendrycks/imagenet-r, eval.py
IMAGENET_R = (
  1, 2, 4, 6, 8, 9, 11, 13, 22, 23, 26, 29, 31, 39, 47, 63, 71, 76, 79, 84, 90, 94, 96, 97, 99,
  100, 105, 107, 113, 122, 125, 130, 132, 144, 145, 147, 148, 150, 151, 155, 160, 161, 162, 163,
  171, 172, 178, 187, 195, 199, 203, 207, 208, 219, 231, 232, 234, 235, 242, 245, 247, 250, 251,
  254, 259, 260, 263, 265, 267, 269, 276, 277, 281, 288, 289, 291, 292, 293, 296, 299, 301, 308,
  309, 310, 311, 314, 315, 319, 323, 327, 330, 334, 335, 337, 338, 340, 341, 344, 347, 353, 355,
  361, 362, 365, 366, 367, 368, 372, 388, 390, 393, 397, 401, 407, 413, 414, 425, 428, 430, 435,
  437, 441, 447, 448, 457, 462, 463, 469, 470, 471, 472, 476, 483, 487, 515, 546, 555, 558, 570,
  579, 583, 587, 593, 594, 596, 609, 613, 617, 621, 629, 637, 657, 658, 701, 717, 724, 763, 768,
  774, 776, 779, 780, 787, 805, 812, 815, 820, 824, 833, 847, 852, 866, 875, 883, 889, 895, 907,
  928, 931, 932, 933, 934, 936, 937, 943, 945, 947, 948, 949, 951, 953, 954, 957, 963, 965, 967,
  980, 981, 983, 988,
)  # fmt: skip

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
