"""Which of ImageNet's 1000 labels the folders of its test sets are.

`README.md` says where the lists come from.
"""

import json
import pathlib

FOLDER = pathlib.Path(__file__).parent


def _wnids(name: str) -> tuple[str, ...]:
  return tuple((FOLDER / f'{name}.txt').read_text(encoding='utf-8').split())


def _objectnet() -> dict[str, tuple[int, ...]]:
  folders = json.loads((FOLDER / 'objectnet.json').read_text(encoding='utf-8'))
  return {name: tuple(LABELS[wnid] for wnid in wnids) for name, wnids in folders.items()}


# The WordNet id of each label, and the reverse.
IMAGENET = _wnids('imagenet')
LABELS = {wnid: i for i, wnid in enumerate(IMAGENET)}
# The labels that occur in a test set.
IMAGENET_A = tuple(LABELS[wnid] for wnid in _wnids('imagenet_a'))
IMAGENET_R = tuple(LABELS[wnid] for wnid in _wnids('imagenet_r'))
# ObjectNet's 313 folders to the labels that each may be called: none, one, or several.
OBJECTNET = _objectnet()
