"""Representation learning on images in JAX: every method one small file plugged into one loop."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from vit_jax.adapters.published import list_checkpoints
  from vit_jax.pretrained import load

__version__ = '0.1.0'
__all__ = ['list_checkpoints', 'load']

# Imported when they are asked for: `import vit_jax` starts no device and imports nothing large.
_LAZY = {'load': 'vit_jax.pretrained', 'list_checkpoints': 'vit_jax.adapters.published'}


def __getattr__(name: str) -> Any:
  if name not in _LAZY:
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  import importlib

  return getattr(importlib.import_module(_LAZY[name]), name)
