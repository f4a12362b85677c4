"""Our own files, `.npz` or `.safetensors`, which `vit_jax convert` writes.

They hold the variables by name and, as an array of bytes called 'vit_jax', a JSON object with what
`Layout` says. Blocks are one by one, whatever the model's `scan`.
"""

import importlib.util
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from vit_jax.adapters.layout import Facts, Layout, Preprocessing
from vit_jax.adapters.mapping import Rule, same
from vit_jax.adapters.tensors import Tensors
from vit_jax.build import resolve

DESCRIPTION = 'vit_jax'


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is one that `vit_jax convert` wrote."""
  return DESCRIPTION in set(names)


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """Reads what the file says of itself.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says.
    files: not used; nothing has to lie beside it.

  Raises:
    ValueError: it says nothing that can be read, or describes something that is no model of ours:
      a file of weights must not be able to call other code.
  """
  del files
  try:
    fields = tuples(json.loads(bytes(tensors[DESCRIPTION])))
    objective, classes = fields['objective'], tuple(fields['classes'])
    preprocessing = Preprocessing(**fields['preprocessing'])
    tokenizer = fields.get('tokenizer')
    _check_types(objective)
    _check_tokenizer(tokenizer)
  except (ValueError, LookupError, TypeError) as e:
    raise ValueError(f'{tensors.path} does not say what it is ({e})') from None
  objective = with_colours(objective, facts)
  names = [name for name in tensors if name != DESCRIPTION]
  rules = [*(same(name, name) for name in names), not_read(DESCRIPTION)]
  shapes = {name: tensors.shapes[name][0] for name in names}
  classes = facts.get('classes', classes)
  return Layout('vit_jax', objective, preprocessing, rules, classes, shapes, tokenizer)


def with_colours(objective: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
  """An objective with the mean and std that the caller says."""
  said = {name: facts.get(name) for name in ('mean', 'std')}
  return {**objective, **{name: value for name, value in said.items() if value is not None}}


def description(
  objective: Mapping[str, Any],
  preprocessing: Preprocessing,
  classes: Iterable[str],
  tokenizer: Mapping[str, Any] | None = None,
) -> np.ndarray:
  """What a file says of itself, `[N]` uint8.

  Args:
    objective: what `build` makes the model of.
    preprocessing: of its images.
    classes: names of its outputs.
    tokenizer: what `build` makes the text tower's tokenizer of.

  Raises:
    ValueError: a part of the model is none of ours, so that the file could not be read.
  """
  objective = one_by_one(objective)
  _check_types(objective)
  _check_tokenizer(tokenizer)
  fields = {
    'objective': objective,
    'preprocessing': vars(preprocessing),
    'classes': list(classes),
  }
  if tokenizer is not None:
    fields['tokenizer'] = dict(tokenizer)
  # A dtype may be NumPy's or JAX's own.
  text = json.dumps(fields, default=lambda value: jnp.dtype(value).name)
  return np.frombuffer(text.encode(), np.uint8)


def one_by_one(spec: Mapping[str, Any]) -> dict[str, Any]:
  """What `build` makes the same model of, with its blocks one by one; lists are tuples."""
  plain = {}
  for key, value in tuples(spec).items():
    if key == 'kernels':  # Of LoRA, which knows them by name.
      value = tuple(re.sub(r'\bblocks\b', r'(?:blocks|block_\\d+)', pattern) for pattern in value)
    if key != 'scan':
      plain[key] = one_by_one(value) if isinstance(value, Mapping) else value
  return plain


def tuples(value: Any) -> Any:
  """Lists, which JSON has, as the tuples of a config, at any depth."""
  if isinstance(value, Mapping):
    return {key: tuples(inner) for key, inner in value.items()}
  return tuple(map(tuples, value)) if isinstance(value, list | tuple) else value


def not_read(name: str) -> Rule:
  """An array of theirs that is no variable."""
  return Rule((), (name,), lambda *_: [], lambda _: [])


def _check_tokenizer(spec: Any) -> None:
  """Raises ValueError where it is none of our tokenizers."""
  path = spec.get('type') if isinstance(spec, Mapping) else spec
  if path is not None and not re.fullmatch(r'data\.tokenizers\.\w+\.\w+', str(path)):
    raise ValueError(f'{path!r} is no tokenizer of vit_jax')


def _check_types(spec: Any) -> None:
  """Raises ValueError where a part of what `build` is to make is none of our modules."""
  path = spec.get('type') if isinstance(spec, Mapping) else spec
  match = re.fullmatch(r'((?:models|objectives)\.\w+)\.\w+', str(path))
  ours = match and importlib.util.find_spec(f'vit_jax.{match[1]}')
  made = resolve(path) if ours else None
  if not (isinstance(made, type) and issubclass(made, nn.Module)):
    raise ValueError(f'{path!r} is no model of vit_jax')
  for value in spec.values():
    if isinstance(value, Mapping):
      _check_types(value)
