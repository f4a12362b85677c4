"""A source as one word on the command line: `folder:/my/images`, `csv:a.csv,text_key=caption`."""

import ast
import inspect
import re
from typing import Any

from vit_jax import build
from vit_jax.choices import listed

SHORT = {
  'array_record': 'data.array_record.ArrayRecord',
  'csv': 'data.csv.Csv',
  'digits': 'data.digits.Digits',
  'emoji': 'data.emoji.Emoji',
  'emoji_packages': 'data.emoji_packages.EmojiPackages',
  'folder': 'data.folder.Folder',
  'idx': 'data.idx.Idx',
  'parquet': 'data.parquet.Parquet',
  'tfds': 'data.tfds.Tfds',
  'webdataset': 'data.webdataset.WebDataset',
}
HELP = (
  'SPEC names a source: TYPE, TYPE:FIRST or TYPE:FIRST,FIELD=VALUE,... with TYPE one of '
  f'{", ".join(SHORT)} or a dotted path of a class; FIRST is its first field: folder:/my/images, '
  'csv:photos.csv,text_key=caption, tfds:cifar10,data_dir=/data, digits, my.package.Source:/data'
)


def parse(text: str) -> dict[str, Any]:
  """Reads the name of a source.

  Args:
    text: `TYPE:FIRST,FIELD=VALUE`, see `HELP`. A comma starts a field only before `NAME=`, so a
      path may have commas. Values are Python literals where they read as such, except numbers for
      a field that takes text, else text.

  Returns:
    What `vit_jax.build.build` takes: dict(type=..., FIELD=...).

  Raises:
    ValueError: an unknown type or field; the sentence lists the choices.
  """
  kind, _, rest = text.partition(':')
  if kind not in SHORT and '.' not in kind:
    raise ValueError(
      f'unknown source {kind!r} in {text!r}; choose from {listed(SHORT, len(SHORT))}, or a '
      'dotted path such as my_package.module.Class'
    )
  kind = SHORT.get(kind, kind)
  parameters = inspect.signature(build.resolve(kind)).parameters
  spec = {'type': kind}
  for k, part in enumerate(re.split(r',(?=[A-Za-z_]\w*=)', rest) if rest else []):
    field, equals, value = part.partition('=')
    if not equals or not field.isidentifier():
      # The first field needs no name; a path may have an `=`.
      if k or not parameters:
        raise ValueError(f'cannot read {part!r} in {text!r}; write TYPE:FIRST,FIELD=VALUE')
      spec[next(iter(parameters))] = part
    elif field not in parameters:
      raise ValueError(f'unknown field {field!r} in {text!r}; choose from {listed([*parameters])}')
    else:
      spec[field] = _value(value, str(parameters[field].annotation))
  return spec


def _value(text: str, annotation: str) -> Any:
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text
  return text if isinstance(value, int | float) and 'str' in annotation else value
