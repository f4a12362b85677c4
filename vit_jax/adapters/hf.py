"""The format of transformers: a file is one of its models, and which one its names say."""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from vit_jax.adapters import hf_clip, hf_clip_text, hf_dinov2, hf_images, hf_vit
from vit_jax.adapters.hf_config import PLACEHOLDER
from vit_jax.adapters.layout import Facts, Layout
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.two_towers import as_image
from vit_jax.models.vit import ViT

if TYPE_CHECKING:
  from vit_jax.model import Model

MODULES = (hf_vit, hf_dinov2, hf_clip)


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names is one that transformers writes."""
  names = list(names)
  return any(module.matches(names) for module in MODULES)


def describe(tensors: Tensors, facts: Facts, files: Mapping[str, Any]) -> Layout:
  """What a file holds; arguments and errors as of the modules' own."""
  module = next(module for module in MODULES if module.matches(tensors))
  return module.describe(tensors, facts, files)


def export_rules(encoder: ViT, num_classes: int | None) -> list[Rule]:
  """What a ViT is called on the Hub.

  Raises:
    ValueError: none of the models is this ViT.
  """
  return _module_of(encoder).export_rules(encoder, num_classes)


def joint_rules(objective: nn.Module) -> list[Rule]:
  """What the arrays of an image tower and a text tower are called on the Hub.

  Raises:
    ValueError: neither CLIP nor SigLIP is this model.
  """
  rules = hf_clip.export_rules(_image_of(objective), None)
  return [*map(as_image, rules), *hf_clip_text.export_rules(objective, clip=_is_clip(objective))]


def companions(model: 'Model') -> dict[str, dict[str, Any]]:
  """The JSON files with which transformers opens a model's folder.

  'preprocessor_config.json' is left out where it cannot say what the model's images go through: of
  host transforms of its own, or where nobody says mean and std.

  Raises:
    ValueError: none of transformers' models is this ViT.
  """
  objective, preprocessing = model.objective, model.preprocessing
  joint = 'text' in model.spec
  encoder = _image_of(objective) if joint else objective.encoder
  size = preprocessing.size
  if encoder.grid:
    size = tuple(g * p for g, p in zip(encoder.grid, encoder.patch, strict=True))
  labels = model.classes
  if model.has_head and not labels:
    labels = [PLACEHOLDER.format(i) for i in range(model.objective.num_classes)]
  config = _module_of(encoder).export_config(encoder, size, preprocessing.channels, labels)
  if joint:
    config = hf_clip_text.export_config(objective, config, clip=_is_clip(objective))
  # A published model has None where nobody says it, a run of ours may leave it to the objective.
  mean, std = (model.spec.get(name, getattr(model.objective, name)) for name in ('mean', 'std'))
  images = hf_images.write_preprocessing(preprocessing, mean, std)
  return {'config.json': config} | ({hf_images.FILE: images} if images else {})


def _image_of(objective: nn.Module) -> ViT:
  """The image tower of a model that could be CLIP or SigLIP."""
  image = objective.image
  if not isinstance(image, ViT) or _module_of(image) is not hf_clip:
    raise ValueError(
      f"transformers takes CLIP's or SigLIP's ViT beside a text tower, not {type(image).__name__}"
    )
  return image


def _is_clip(objective: nn.Module) -> bool:
  return objective.image.pre_norm


def _module_of(encoder: ViT) -> ModuleType:
  """The module of the model that this ViT could be; whether it is, that module finds out."""
  if not isinstance(encoder, ViT) or encoder.stem:
    what = 'a ViT with a stem' if isinstance(encoder, ViT) else type(encoder).__name__
    raise ValueError(f'transformers takes a plain ViT, not {what}')
  if encoder.layer_scale is not None or encoder.registers:
    return hf_dinov2
  return hf_clip if encoder.pre_norm or encoder.pooling == 'map' else hf_vit
