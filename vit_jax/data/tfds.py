"""Any TFDS data set (tensorflow.org/datasets) that is prepared with random access, as ArrayRecord.

Needs no TensorFlow and never downloads. What is read is the data's own description in its directory
(`dataset_info.json`, `features.json`), not TFDS's code for the data set: data sets of your own, and
versions that TFDS has dropped, are read alike.
"""

import os
import re
from typing import Any

import numpy as np

from vit_jax.data import splits

_NAME = re.compile(r'(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?')
# TFDS's command line imports all of these, whatever it is asked to do; reading needs none of them.
_INSTALL = 'pip install tensorflow-datasets tensorflow apache-beam mlcroissant'
_VERSION = re.compile(r'\d+\.\d+\.\d+')


class Tfds:
  """`source[i]` has `image` (encoded bytes; uint8 [H, W, C] if stored as an array), `label`, `id`.

  Picklable: a worker opens the files itself, when it first reads.
  """

  def __init__(
    self,
    name: str,
    split: str = 'train',
    data_dir: str | None = None,
    image_key: str = 'image',
    label_key: str | None = 'label',
  ):
    """Finds the prepared data.

    Args:
      name: 'cifar10', 'imagenet2012'; 'imagenet_resized/64x64' names a config, 'cifar10:3.0.2' a
        version, else the newest that is prepared is read.
      split: 'train', 'train[:99%]', 'train+test' (`data/splits.py`).
      data_dir: where TFDS keeps its data, a path or a bucket (gs://...); None is $TFDS_DATA_DIR,
        else ~/tensorflow_datasets.
      image_key: the feature that is the image.
      label_key: the feature that is the label, an integer; None for data without labels.

    Raises:
      FileNotFoundError: the data is not prepared in `data_dir`; the error lists what there is.
      ValueError: it is prepared as TFRecord, several configs fit, an unknown split or feature, or
        tensorflow_datasets is missing.
    """
    self.dataset, self._keys = name, (image_key, label_key)
    self._directory = _find(name, data_dir)
    self._builder = self._reader = None
    info = self._open().info
    for key in (image_key, label_key):
      if key is not None and key not in info.features:
        choices = ', '.join(repr(choice) for choice in sorted(info.features))
        raise ValueError(f'{name} has no feature {key!r}; choose from {choices}')
    _check_image(name, image_key, info.features[image_key])
    self.classes = _classes(name, label_key, label_key and info.features[label_key])
    self.num_classes = len(self.classes)
    self.selection = splits.Selection(split, {k: s.num_examples for k, s in info.splits.items()})

  def __len__(self) -> int:
    return len(self.selection)

  def __getitem__(self, i: int) -> dict[str, Any]:
    place = self.selection[i]
    records, features, decoders = self._read()
    record = records[i]
    if not record:  # what ArrayRecord gives of a file that is cut short
      raise ValueError(f'cannot read {self.name(i)}: a file in {self._directory} is damaged')
    example = features.deserialize_example_np(record, decoders=decoders)
    image_key, label_key = self._keys
    out = {'image': example[image_key], 'id': np.int64(place.id)}
    if label_key is not None:
      out['label'] = np.int32(example[label_key])
    return out

  def name(self, i: int) -> str:
    """A name for messages: 'cifar10/train[17]'."""
    place = self.selection[i]
    return f'{self.dataset}/{place.name}[{place.index}]'

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {'_builder': None, '_reader': None}

  def _open(self) -> Any:
    """The builder that reads the description, after a check of the format."""
    if self._builder is None:
      import tensorflow_datasets as tfds

      builder = tfds.builder_from_directory(self._directory)
      formats = sorted(f.value for f in builder.info.available_file_formats())
      if not {'array_record', 'parquet'} & set(formats):
        raise ValueError(
          f'{self.dataset} is prepared as {" and ".join(formats)} in {self._directory}, which has '
          f'no random access; convert it once, after `{_INSTALL}`, with: tfds convert_format '
          f'--dataset_version_dir={self._directory} --out_file_format=array_record'
        )
      self._builder = builder
    return self._builder

  def _read(self) -> tuple[Any, Any, dict[str, Any]]:
    """The serialised records, and how to read the two features that we want of them."""
    if self._reader is None:
      import tensorflow_datasets as tfds

      builder = self._open()
      image_key, _ = self._keys
      # The parts as absolute slices: one reading of `split`, ours.
      split = '+'.join(f'{p.name}[{p.start}:{p.stop}]' for p in self.selection.parts)
      raw = tfds.decode.DeserializeMethod.RAW_BYTES
      records = builder.as_data_source(split, deserialize_method=raw)
      # Only these two features: others may be large (a second image, a video).
      features = {key: builder.info.features[key] for key in self._keys if key is not None}
      decoders = {}
      if isinstance(features[image_key], tfds.features.Image):
        # The pipeline's `decode` can decode a JPEG at reduced scale, TFDS cannot.
        decoders[image_key] = tfds.decode.SkipDecoding()
      self._reader = records, tfds.features.FeaturesDict(features), decoders
    return self._reader


def _find(name: str, data_dir: str | None) -> str:
  """The directory of the newest prepared version, `data_dir/name[/config]/version`."""
  try:
    import tensorflow_datasets  # noqa: F401
    from etils import epath
  except ImportError:
    raise ValueError(
      f"tensorflow_datasets, which reads {name!r}, is not installed: pip install 'vit_jax[tfds]'"
    ) from None
  match = _NAME.fullmatch(name)
  if not match:
    raise ValueError(
      f"cannot read the name {name!r}; write 'name', 'name/config', 'name:1.0.0' or "
      "'name/config:1.0.0'"
    )
  data_dir = data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  if '://' not in data_dir:  # a relative path makes tfds convert_format fail without a word
    data_dir = os.path.abspath(os.path.expanduser(data_dir))
  root = epath.Path(data_dir)
  prepared = _prepared(root, match['name'])
  wanted = match['config'], match['version']
  found = [
    (config, version, path)
    for config, version, path in prepared
    if wanted[0] in (None, config) and wanted[1] in (None, version)
  ]
  if not found:
    there = prepared or [p for n in _directories(root) for p in _prepared(root, n)]
    raise FileNotFoundError(
      f'{name} is not prepared in {root}, which has {_listed(root, there)}; nothing is downloaded '
      f'unasked: prepare it once, after `{_INSTALL}`, with: '
      f'tfds build {name} --data_dir={root} --file_format=array_record'
    )
  configs = sorted({config or '' for config, _, _ in found})
  if len(configs) > 1:
    choices = ', '.join(repr(f'{match["name"]}/{config}') for config in configs)
    raise ValueError(f'{name} is prepared in several configs; choose from {choices}')
  return os.fspath(max(found, key=lambda f: [int(number) for number in f[1].split('.')])[2])


def _prepared(root: Any, name: str) -> list[tuple[str | None, str, Any]]:
  """(config or None, version, directory) of every finished version of `name` under `root`."""
  found = []
  for child in _directories(root / name):
    if _VERSION.fullmatch(child):
      found.append((None, child, root / name / child))
    else:
      grandchildren = filter(_VERSION.fullmatch, _directories(root / name / child))
      found += [(child, version, root / name / child / version) for version in grandchildren]
  return [f for f in found if (f[2] / 'features.json').exists()]


def _directories(path: Any) -> list[str]:
  return sorted(p.name for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _listed(root: Any, prepared: list[tuple[str | None, str, Any]], limit: int = 8) -> str:
  names = [os.path.relpath(os.fspath(path), os.fspath(root)) for _, _, path in prepared]
  more = f' and {len(names) - limit} more' if len(names) > limit else ''
  return (', '.join(repr(name) for name in names[:limit]) or 'nothing') + more


def _check_image(name: str, key: str, feature: Any) -> None:
  """Only images of 8 bits: a float image is stored as bytes that decode to something else."""
  if feature.shape is None or len(feature.shape) != 3 or feature.np_dtype != np.uint8:
    raise ValueError(
      f'feature {key!r} of {name} is {feature}, not an image uint8 [H, W, C]; set image_key'
    )


def _classes(name: str, key: str | None, feature: Any) -> tuple[str, ...]:
  if key is None:
    return ()
  if feature.shape != () or not np.issubdtype(feature.np_dtype, np.integer):
    raise ValueError(
      f'feature {key!r} of {name} is {feature}, not one integer; '
      'set label_key, or None for no label'
    )
  return tuple(getattr(feature, 'names', None) or ())
