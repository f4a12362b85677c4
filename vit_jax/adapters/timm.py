"""The format of timm and torchvision: Vision Transformers and residual networks."""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from vit_jax.adapters import timm_resnet, timm_vit
from vit_jax.adapters.layout import Facts, Layout
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.models.resnet import ResNet
from vit_jax.models.vit import ViT

if TYPE_CHECKING:
  from vit_jax.model import Model

MODULES = {ViT: timm_vit, ResNet: timm_resnet}


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is of this format."""
  names = list(names)
  return any(module.matches(names) for module in MODULES.values())


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """What a file holds; arguments and errors as of the modules' own."""
  module = next(module for module in MODULES.values() if module.matches(tensors))
  return module.describe(tensors, facts, files)


def export_rules(encoder: nn.Module, num_classes: int | None) -> list[Rule]:
  """What an encoder's arrays are called in timm.

  Raises:
    ValueError: timm has no place for the encoder, or for parts of it.
  """
  return _module_of(encoder).export_rules(encoder, num_classes)


def companions(model: 'Model') -> dict[str, dict[str, Any]]:
  """The 'config.json' with which `timm.create_model('local-dir:FOLDER', pretrained=True)` opens it.

  Raises:
    ValueError: timm has no place for the encoder.
  """
  return _module_of(model.objective.encoder).companions(model)


def _module_of(encoder: nn.Module) -> ModuleType:
  module = next((m for kind, m in MODULES.items() if isinstance(encoder, kind)), None)
  if module is None:
    raise ValueError(f'timm takes a ViT or a ResNet, not {type(encoder).__name__}')
  return module
