"""The 'config.json' of transformers: what it says of a ViT, in and out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vit_jax.adapters.layout import Facts, published_heads, square_grid
from vit_jax.choices import listed
from vit_jax.models.vit import ViT

# `transformers/activations.py`, theirs to ours; of those alike, the first is what is written.
ACTIVATIONS = {
  'gelu': 'gelu',
  'gelu_pytorch_tanh': 'gelu_tanh',
  'gelu_new': 'gelu_tanh',
  'gelu_fast': 'gelu_tanh',
  'quick_gelu': 'quick_gelu',
}
# Of an encoder, what is read by nothing but masked training, or says nothing.
UNREAD = ('mask_token', 'position_ids')
# What a part of a name says of an architecture that we have not.
OTHERS = {
  'distillation_token': "DeiT's second token, of distillation",
  'detection_tokens': 'tokens of detection',
  'weights_in': 'a SwiGLU MLP',
  'gate_proj': 'a SwiGLU MLP',
  'relative_position_bias': 'relative positions',
  'backbone': 'a convolutional stem',
}
PLACEHOLDER = 'LABEL_{}'  # what transformers calls a class of which nobody says the name


class Defaults(NamedTuple):
  """What a family's config class takes where a file leaves a key out."""

  hidden_act: str
  layer_norm_eps: float
  num_attention_heads: int = 12


class Config(NamedTuple):
  """What a 'config.json' says of one tower, mostly the images' encoder.

  Attributes:
    path: of the weights, for messages.
    keys: of the part that is about one tower; None where there is no such file.
    defaults: of its family.
    stated: keys whose defaults hold without a file too.
  """

  path: str
  keys: Mapping[str, Any] | None
  defaults: Defaults
  stated: Sequence[str] = ()

  def get(self, key: str) -> Any:
    """A value, or its default; None where nobody says it."""
    if self.keys is not None:
      return self.keys.get(key, getattr(self.defaults, key, None))
    return getattr(self.defaults, key) if key in self.stated else None

  def transformer(
    self, facts: Facts, width: int, depth: int, mlp_dim: int, num_heads: int | None = None
  ) -> dict[str, Any]:
    """A transformer's `num_heads`, `activation` and `ln_eps`.

    Args:
      facts: what the caller says.
      width: features of a token.
      depth: blocks.
      mlp_dim: hidden features of the MLPs.
      num_heads: where no file says them; None: those of the published size of a ViT.

    Raises:
      ValueError: nobody says one of them, or it is an activation that we have not.
    """
    heads = self.get('num_attention_heads') or num_heads or published_heads(width, depth, mlp_dim)
    act = self.get('hidden_act')
    if act is not None and act not in ACTIVATIONS and not facts.get('activation'):
      raise ValueError(
        f'{self.path}: config.json has hidden_act {act!r}; known are {listed(ACTIVATIONS)}'
      )
    return {
      'num_heads': facts.need('num_heads', heads, self.path),
      'activation': facts.need('activation', ACTIVATIONS.get(act), self.path),
      'ln_eps': facts.need('ln_eps', self.get('layer_norm_eps'), self.path),
    }

  def grid(self, tokens: int, patch: tuple[int, int], facts: Facts) -> tuple[int, int]:
    """The grid of so many patches.

    Raises:
      ValueError: it has another number, or is no square and nobody says what it is.
    """
    size = self.get('image_size')
    said = size and tuple(s // p for s, p in zip(pair(size), patch, strict=True))
    return square_grid(tokens, self.path, Facts({'grid': facts.get('grid', said)}))


def find_config(
  path: str,
  files: Mapping[str, Any],
  known: Mapping[str, Defaults],
  stated: Sequence[str] = (),
  part: str = 'vision',
) -> Config:
  """What the 'config.json' beside weights says of one tower.

  Args:
    path: of the weights.
    files: the JSON files beside them, by name.
    known: values of 'model_type' that can be read; without a file, the first.
    stated: keys whose defaults hold without a file too.
    part: 'vision' or 'text'. A file about images alone has no such parts.

  Raises:
    ValueError: it is of another type of model.
  """
  config = files.get('config.json')
  if config is None:
    return Config(path, None, next(iter(known.values())), stated)
  kind = config.get('model_type', next(iter(known)))
  if kind not in known:
    raise ValueError(
      f'{path}: config.json has model_type {kind!r}; with these names it can be {listed(known)}'
    )
  # Files of 2021 have each part twice, and the second counts: `CLIPConfig`.
  keys = config.get(f'{part}_config_dict') or config.get(f'{part}_config')
  if keys is None:
    keys = config if part == 'vision' else {}
  return Config(path, keys, known[kind], stated)


def class_names(files: Mapping[str, Any], count: int, facts: Facts) -> Sequence[str]:
  """Names of so many classes, in order; () where nobody says them."""
  labels = (files.get('config.json') or {}).get('id2label') or {}
  numbered = {int(number): name for number, name in labels.items()}
  names = [numbered.get(i) for i in range(count)]
  said = len(labels) == count and None not in names
  placeholders = [PLACEHOLDER.format(i) for i in range(count)]
  return facts.get('classes', names if said and names != placeholders else ())


def write_config(
  encoder: ViT,
  model_type: str,
  architecture: str,
  size: tuple[int, int],
  channels: int,
  labels: Sequence[str] = (),
) -> dict[str, Any]:
  """What all families have in their 'config.json'.

  Args:
    encoder: the module.
    model_type: as transformers calls it.
    architecture: the class that opens the weights.
    size: `(height, width)` of the learned positions, in pixels.
    channels: of its images.
    labels: names of the classes.
  """
  width, depth, mlp_dim, num_heads = encoder.size
  theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  config = {
    'architectures': [architecture],
    'model_type': model_type,
    'hidden_size': width,
    'num_hidden_layers': depth,
    'intermediate_size': mlp_dim,
    'num_attention_heads': num_heads,
    'hidden_act': theirs[encoder.activation],
    'layer_norm_eps': encoder.ln_eps,
    'image_size': one_or_two(size),
    'patch_size': one_or_two(encoder.patch),
    'num_channels': channels,
  }
  if labels:
    config['id2label'] = {str(i): name for i, name in enumerate(labels)}
    config['label2id'] = {name: i for i, name in enumerate(labels)}
  return config


def pair(size: Any) -> tuple[int, int]:
  """`(height, width)` of a size as the files have it: a number for a square, a list or a dict."""
  if isinstance(size, Mapping):
    size = size['height'], size['width']
  return (size, size) if isinstance(size, int) else tuple(size)


def one_or_two(size: Sequence[int]) -> Any:
  """The same the other way: a number for a square, else a list."""
  return size[0] if size[0] == size[1] else list(size)
