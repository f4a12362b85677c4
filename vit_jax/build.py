"""From a config's plain data to objects: `{'type': 'models.vit.ViT', 'variant': 'S/16'}` -> `ViT(variant='S/16')`."""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

import ml_collections


def resolve(path: str) -> Any:
  """The object that a dotted path names: under `vit_jax` first, else in anybody's package.

  Raises:
    ValueError: no such module or name; the sentence lists those there are.
  """
  module_name, _, name = path.rpartition('.')
  if not module_name:
    raise ValueError(f"type {path!r} is no dotted path such as 'models.vit.ViT'")
  module = _import(f'vit_jax.{module_name}')
  if module is None:
    module = _import(module_name)
  if module is None:
    raise ValueError(f'unknown type {path!r}; {_nearest_modules(module_name)}')
  if not hasattr(module, name):
    public = [n for n, v in vars(module).items() if inspect.isclass(v) and n[0] != '_']
    own = [n for n in public if getattr(module, n).__module__ == module.__name__] or public
    raise ValueError(f'unknown type {path!r}; {module.__name__} has {_join(own)}')
  return getattr(module, name)


def build(spec: Mapping[str, Any], **extra: Any) -> Any:
  """Builds what `spec` describes; nested specs are built first.

  Args:
    spec: a mapping or ConfigDict with `type`, a dotted path, and the fields to call it with.
    **extra: arguments that do not come from a config, such as the mesh.

  Returns:
    Whatever the type makes.

  Raises:
    ValueError: an unknown type or field, with the choices, or a field that is missing.
  """
  if isinstance(spec, ml_collections.ConfigDict):
    spec = spec.to_dict()
  if 'type' not in spec:
    raise ValueError(f"cannot build {dict(spec)!r}: it has no 'type'")
  made = resolve(spec['type'])
  fields = {k: _build_nested(v) for k, v in spec.items() if k != 'type'}
  signature = inspect.signature(made)
  try:
    signature.bind(**extra, **fields)
  except TypeError as e:
    known = [n for n in signature.parameters if n not in (*extra, 'parent', 'name')]
    unknown = [k for k in fields if k not in signature.parameters]
    if unknown:
      raise ValueError(
        f'unknown field {unknown[0]!r} of {spec["type"]}; choose from {_join(known)}'
      ) from None
    raise ValueError(f'{spec["type"]}: {e}; its fields are {_join(known)}') from None
  return made(**extra, **fields)


def _build_nested(value: Any) -> Any:
  if isinstance(value, Mapping):
    if 'type' in value:
      return build(value)
    return {k: _build_nested(v) for k, v in value.items()}
  return value


def _import(name: str) -> Any:
  try:
    return importlib.import_module(name)
  except ModuleNotFoundError as e:
    # Only "this very module (or a parent of it) does not exist" means a wrong path.
    if e.name is not None and (name == e.name or name.startswith(e.name + '.')):
      return None
    raise


def _nearest_modules(name: str) -> str:
  parent, _, leaf = name.rpartition('.')
  package = _import(f'vit_jax.{parent}' if parent else 'vit_jax')
  if package is None or not hasattr(package, '__path__'):
    package, parent = _import('vit_jax'), ''
  names = [m.name for m in pkgutil.iter_modules(package.__path__)]
  near = difflib.get_close_matches(leaf, names, n=1)
  hint = f'did you mean {near[0]!r}? ' if near else ''
  return f'{hint}modules in vit_jax{"." + parent if parent else ""} are {_join(sorted(names))}'


def _join(names: list[str]) -> str:
  return ', '.join(repr(n) for n in names) or 'none'
