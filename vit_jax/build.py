"""From plain data to objects: `{'type': 'models.vit.ViT', 'variant': 'S/16'}` -> `ViT('S/16')`."""

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
  parts = path.split('.') if isinstance(path, str) else []
  if len(parts) < 2 or not all(part.isidentifier() for part in parts):
    raise ValueError(f"type {path!r} is no dotted path such as 'models.vit.ViT'")
  module_name, name = '.'.join(parts[:-1]), parts[-1]
  module = _import(f'vit_jax.{module_name}')
  if module is None:
    module = _import(module_name)
  if module is None:
    raise ValueError(f'unknown type {path!r}; {_nearest_modules(module_name)}')
  if not hasattr(module, name):
    public = [n for n, v in vars(module).items() if inspect.isclass(v) and n[0] != '_']
    own = [n for n in public if getattr(module, n).__module__ == module.__name__] or public
    hint = _did_you_mean(name, own)
    raise ValueError(f'unknown type {path!r}; {hint}{module.__name__} has {_join(own)}')
  made = getattr(module, name)
  if not callable(made):
    raise ValueError(f'type {path!r} is no class or function, but {type(made).__name__}')
  return made


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
  if not isinstance(spec, Mapping) or 'type' not in spec:
    raise ValueError(f"cannot build {spec!r}: it is no dict(type='models.vit.ViT', ...)")
  made = resolve(spec['type'])
  fields = {k: _build_nested(v) for k, v in spec.items() if k != 'type'}
  signature = inspect.signature(made)
  try:
    signature.bind(**extra, **fields)
  except TypeError as e:
    # Linen gives every module a `parent` and a `name`, which no config sets.
    hidden = ('parent', 'name') if 'parent' in signature.parameters else ()
    known = [n for n in signature.parameters if n not in (*extra, *hidden)]
    unknown = [k for k in fields if k not in known]
    takes_any = any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values())
    if unknown and not takes_any:
      raise ValueError(
        f'unknown field {unknown[0]!r} of {spec["type"]}; choose from {_join(known)}'
      ) from None
    raise ValueError(f'{spec["type"]}: {e}; its fields are {_join(known)}') from None
  return made(**extra, **fields)


def _build_nested(value: Any) -> Any:
  if isinstance(value, Mapping | ml_collections.ConfigDict):
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
  """What the deepest package on the path `name` holds instead."""
  parts = name.split('.')
  for i in range(len(parts) - 1, 0, -1):
    for path in (f'vit_jax.{".".join(parts[:i])}', '.'.join(parts[:i])):
      package = _import(path)
      if hasattr(package, '__path__'):
        names = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
        return f'{_did_you_mean(parts[i], names)}modules in {path} are {_join(names)}'
  names = sorted(m.name for m in pkgutil.iter_modules(_import('vit_jax').__path__) if m.ispkg)
  return f'{_did_you_mean(parts[0], names)}packages in vit_jax are {_join(names)}'


def _did_you_mean(name: str, choices: list[str]) -> str:
  near = difflib.get_close_matches(name, choices, n=1)
  return f'did you mean {near[0]!r}? ' if near else ''


def _join(names: list[str]) -> str:
  return ', '.join(repr(n) for n in names) or 'none'
