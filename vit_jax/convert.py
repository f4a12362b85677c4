"""Models as files: our own, those of other libraries, and programs that JAX alone runs."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import numpy as np
from flax import traverse_util

from vit_jax.adapters import ours, write
from vit_jax.adapters.formats import COMPANIONS, FORMATS, WEIGHTS, open_checkpoint
from vit_jax.adapters.layout import Preprocessing, inside
from vit_jax.adapters.tensors import SUFFIXES
from vit_jax.checkpoint import named, write_json
from vit_jax.choices import check_choice, listed
from vit_jax.model import Model
from vit_jax.models.lora import LoRA, merge
from vit_jax.pretrained import build_model

# Fields of an encoder that do not change what it gives in evaluation, or that its `size` and
# `patch` say.
_IMMATERIAL = (
  'parent', 'name', 'dtype', 'attention', 'scan', 'remat', 'dropout', 'drop_path', 'patch_dropout',
  'variant', 'patch_size', 'patch_bias', 'width', 'depth', 'mlp_dim', 'num_heads', 'blocks',
  'bottleneck',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Written:
  """What was written.

  Attributes:
    path: of the file, or of the folder with it.
    format: its name.
    arrays: how many it has, of the model alone.
    parameters: how many numbers the model has.
    size: of the file of weights, in bytes.
    unsaid: what is not said in it of the model, and what a reader takes instead.
  """

  path: Path
  format: str
  arrays: int
  parameters: int
  size: int
  unsaid: Sequence[str]

  def __str__(self) -> str:
    line = (
      f'wrote {self.path} ({self.format}): {self.parameters:,} parameters in {self.arrays} arrays, '
      f'{self.size / 1e6:,.1f} MB'
    )
    return '\n'.join([line, *(f'  not said in it: {text}' for text in self.unsaid)])


def save(
  model: Model, path: str | Path, format: str | None = None, *, overwrite: bool = False
) -> Written:
  """Writes a model, its variables alone, with LoRA's products added and blocks one by one.

  Args:
    model: what `vit_jax.load` made.
    path: of a file, or, of 'timm' and 'transformers', of a folder that they open: weights and what
      says what these are. Of a file `.safetensors` of theirs, this lies beside it.
    format: a key of `EXPORTS`; None: by the path's ending.
    overwrite: whether to write over what is there.

  Returns:
    What was written; to be printed.

  Raises:
    FileExistsError: it is there.
    ValueError: an unknown format, another ending, or what the format has no place for.
    OSError: it cannot be written; what was there before stays.
  """
  format, file = destination(path, format, overwrite=overwrite)
  model = plain(model)
  arrays = EXPORTS[format].write(model, file)
  parameters = sum(x.size for x in named(model.params).values())
  path = Path(os.path.expanduser(path))
  unsaid = _unsaid(model, path, format) if format in FORMATS else []
  return Written(path, format, arrays, parameters, file.stat().st_size, unsaid)


def destination(
  path: str | Path, format: str | None = None, *, overwrite: bool = False
) -> tuple[str, Path]:
  """The format and the file that weights go to; arguments and errors as of `save`."""
  path = Path(os.path.expanduser(path))
  if format is None:
    format = next((name for name, e in EXPORTS.items() if path.suffix in e.endings), None)
    if format is None:
      raise ValueError(f'say the format of {path}; choose from {listed(EXPORTS)}')
  export = EXPORTS[check_choice('format', format, EXPORTS)]
  file = path
  if path.suffix not in export.endings:
    if not export.folder or path.name.endswith(SUFFIXES):
      what = ' or '.join((*export.endings, *(['a folder'] if export.folder else [])))
      raise ValueError(f'{format} is written as {what}, and not as {path.name!r}')
    file = path / WEIGHTS[0]
  files = [file, *(file.parent / name for name in COMPANIONS if export.folder)]
  there = next((file for file in files if file.exists()), None)
  if there and not overwrite:
    raise FileExistsError(f'{there} is there already; --force (overwrite=True) writes over it')
  return format, file


def plain(model: Model) -> Model:
  """The same model without LoRA, whose products are added to the kernels, and without scan."""
  spec, encoder = ours.one_by_one(model.spec), getattr(model.objective, 'encoder', None)
  variables = {name: dict(collection) for name, collection in model.variables.items()}
  while isinstance(encoder, LoRA):
    for name, collection in variables.items():
      inner = collection.get('encoder', {})
      is_params = name == 'params'
      collection['encoder'] = merge(inner, alpha=encoder.alpha) if is_params else inner['encoder']
    spec['encoder'], encoder = spec['encoder']['encoder'], encoder.encoder
  objective = build_model(spec)
  for name in ('mean', 'std'):  # What nobody says stays None.
    spec.setdefault(name, getattr(objective, name, None))
  arrays = write.one_by_one({name: np.asarray(x) for name, x in named(variables).items()})
  variables = traverse_util.unflatten_dict(arrays, sep='/')
  return model.replaced(objective, variables, spec)


def _write_ours(model: Model, file: Path) -> int:
  arrays = named(model.variables)
  tokenizer = model.tokenizer_spec if model.has_text else None
  about = ours.description(model.spec, model.preprocessing, model.classes, tokenizer)
  write.save(file, {**arrays, ours.DESCRIPTION: about})
  return len(arrays)


def _write_theirs(format: str) -> Callable[[Model, Path], int]:
  def write_(model: Model, file: Path) -> int:
    module, objective = FORMATS[format], model.objective
    takes = 'joint_rules' if model.has_text else 'export_rules'
    if not hasattr(module, takes) or not (model.has_text or hasattr(objective, 'encoder')):
      raise ValueError(f'{format} has no place for a {type(objective).__name__}')
    if model.spec.get('eval_augment'):
      raise ValueError(
        f'{format} has no place for eval_augment={model.spec["eval_augment"]!r}, which images go '
        'through in this model'
      )
    if model.has_text:
      rules = module.joint_rules(objective)
    else:
      classes = objective.num_classes if model.has_head else None
      rules = module.export_rules(objective.encoder, classes)
    arrays = dict(write.their_arrays(rules, named(model.variables)))
    if EXPORTS[format].folder:
      companions = module.companions(model)
      for name in COMPANIONS:  # Before the weights: where these are, all is.
        if name in companions:
          write_json(file.parent / name, companions[name])
        else:
          (file.parent / name).unlink(missing_ok=True)
    write.save(file, arrays)
    return len(arrays)

  return write_


def _write_program(model: Model, file: Path) -> int:
  model.export(file)
  return len(named(model.variables))


class Export(NamedTuple):
  """How a format is written.

  Attributes:
    write: to a file of weights; gives the number of its arrays.
    endings: of that file.
    folder: whether it has companions, and may be named by the folder of both.
  """

  write: Callable[[Model, Path], int]
  endings: Sequence[str]
  folder: bool = False


EXPORTS = {
  'vit_jax': Export(_write_ours, ('.npz', '.safetensors')),
  'vision_transformer': Export(_write_theirs('vision_transformer'), ('.npz',)),
  'timm': Export(_write_theirs('timm'), ('.safetensors',), folder=True),
  'transformers': Export(_write_theirs('transformers'), ('.safetensors',), folder=True),
  'open_clip': Export(_write_theirs('open_clip'), ('.safetensors',), folder=True),
  'jax': Export(_write_program, ('.jaxexport',)),
}


def _unsaid(model: Model, path: Path, format: str) -> list[str]:
  """What differs where a written model is described anew, by the file alone."""
  try:
    _, layout = open_checkpoint(path, format=format)
  except ValueError as e:
    return [str(e)]
  read = _facts(build_model(layout.objective), layout.objective, layout.preprocessing)
  facts = _facts(model.objective, model.spec, model.preprocessing)
  unsaid = [
    f'{name} {value!r}, which a reader takes for {read.get(name)!r}'
    for name, value in facts.items()
    if value != read.get(name)
  ]
  if tuple(layout.classes) != model.classes:
    unsaid.append('the names of the classes')
  return unsaid


def _facts(
  objective: nn.Module, spec: Mapping[str, Any], preprocessing: Preprocessing
) -> dict[str, Any]:
  """All that decides what a model gives for an image, beside its weights."""
  facts = _fields(getattr(objective, inside(spec)))
  if 'text' in spec:
    facts |= {f'text.{name}': value for name, value in _fields(objective.text).items()}
    facts['loss'] = objective.loss
  for name in ('mean', 'std'):
    value = spec.get(name)
    colours = value if value is None else np.broadcast_to(value, preprocessing.channels).tolist()
    facts[name] = colours
  return {**facts, 'preprocessing': preprocessing.host}


def _fields(encoder: nn.Module) -> dict[str, Any]:
  names = [field.name for field in dataclasses.fields(encoder)]
  facts = {name: ours.tuples(getattr(encoder, name)) for name in names if name not in _IMMATERIAL}
  return {**facts, **{name: getattr(encoder, name, None) for name in ('size', 'patch')}}
