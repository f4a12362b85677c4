"""The text towers of CLIP and SigLIP of transformers, and what compares them with images.

Of `CLIPModel` and `SiglipModel`; a text tower in a file of its own is no model here.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from vit_jax.adapters.hf_config import (
  ACTIVATIONS,
  OTHERS,
  UNREAD,
  Defaults,
  find_config,
)
from vit_jax.adapters.layout import (
  Facts,
  Layout,
  count_blocks,
  refuse_arrays,
  refuse_fields,
  shape_of,
)
from vit_jax.adapters.mapping import Rule, dense, linear, mlp, norm, same
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.two_towers import (
  LOG_SCALE,
  LOGIT_BIAS,
  PROJECTION,
  TEXT,
  check_dims,
  clip_tokenizer,
  heads_of,
  join,
  pieces_tokenizer,
  text_spec,
)
from vit_jax.models.sizes import Size
from vit_jax.models.text import TextTransformer

PREFIX = 'text_model.'
EMBEDDINGS = f'{PREFIX}embeddings'
PATCHES = 'vision_model.embeddings.patch_embedding.weight'
# Of `CLIPTextConfig` and `SiglipTextConfig`.
CLIP = {'clip': Defaults('quick_gelu', 1e-5, num_attention_heads=8)}
SIGLIP = {'siglip': Defaults('gelu_pytorch_tanh', 1e-6)}
LEGACY_END = 2  # What files say whose end is the largest id: `CLIPTextTransformer`.
NO_PLACE = {'pad_id': (None,), 'mask_padding': (False,)}


def matches(names: Iterable[str]) -> bool:
  """Whether a file with these names, of an image tower, has a text tower too."""
  return f'{EMBEDDINGS}.token_embedding.weight' in set(names)


def add_text(
  tensors: Tensors, facts: Facts, files: Mapping[str, Any], image: Layout, *, clip: bool
) -> Layout:
  """The layout of both towers.

  Args:
    tensors: the arrays of the file.
    facts: what the caller says; its heads are those of the image tower.
    files: what lies beside the file, by name.
    image: the layout of the image tower.
    clip: whether it is CLIP's, not SigLIP's.

  Raises:
    ValueError: an array is missing, one makes it another architecture, towers that do not belong
      together, or a fact that nobody says.
  """
  path = tensors.path
  config = find_config(path, files, CLIP if clip else SIGLIP, part='text')
  vocab_size, width = shape_of(tensors, f'{EMBEDDINGS}.token_embedding.weight')
  context = shape_of(tensors, f'{EMBEDDINGS}.position_embedding.weight')[0]
  depth = count_blocks(list(tensors), f'{PREFIX}encoder.layers.', '.')
  mlp_dim = shape_of(tensors, f'{PREFIX}encoder.layers.0.mlp.fc1.weight')[0]
  said = Facts({name: facts.get(name) for name in ('activation', 'ln_eps')})
  fields = config.transformer(said, width, depth, mlp_dim, heads_of(width, depth, mlp_dim))
  size = Size(width, depth, mlp_dim, fields.pop('num_heads'))
  kernel = 'text_projection.weight' if clip else f'{PREFIX}head.weight'
  fields['projection'] = shape_of(tensors, kernel)[0]
  if clip:
    end = config.get('eos_token_id')
    fields['end_id'] = vocab_size - 1 if end in (None, LEGACY_END) else end
    check_dims(path, shape_of(tensors, 'visual_projection.weight')[0], fields['projection'])
    tokenizer = clip_tokenizer(vocab_size, context)
  else:
    fields |= {'causal': False, 'pooling': 'last', 'projection_bias': True}
    check_dims(path, shape_of(tensors, PATCHES)[0], fields['projection'])
    tokenizer = pieces_tokenizer(files, vocab_size, context)
  rules = list(text_rules(depth, clip=clip))
  refuse_arrays(tensors, (PREFIX,), rules, OTHERS, UNREAD)
  text = text_spec(size, vocab_size, context, **fields)
  projection = fields['projection'] if clip else None
  return join(tensors, image, text, rules, projection=projection, tokenizer=tokenizer)


def export_rules(objective: Any, *, clip: bool) -> list[Rule]:
  """What all but the image tower is called on the Hub.

  Raises:
    ValueError: it has parts that the format has no place for.
  """
  name, text = f"transformers' {'CLIP' if clip else 'SigLIP'}", objective.text
  if not isinstance(text, TextTransformer):
    raise ValueError(f'{name} takes a TextTransformer, not a {type(text).__name__}')
  only = {
    'causal': (clip,),
    'pooling': ('end' if clip else 'last',),
    'projection_bias': (not clip,),
  }
  refuse_fields(name, text, {**NO_PLACE, **only})
  refuse_fields(name, objective, {'loss': ('softmax' if clip else 'sigmoid',)})
  if text.projection is None or clip != (objective.projection is not None):
    needed = 'texts and images' if clip else 'texts alone'
    raise ValueError(f'{name} has a projection of {needed}, and this model has not')
  return list(text_rules(text.size.depth, clip=clip))


def export_config(objective: Any, vision: Mapping[str, Any], *, clip: bool) -> dict[str, Any]:
  """The 'config.json' of both towers.

  Args:
    objective: the module.
    vision: what it says of the image tower alone.
    clip: whether it is CLIP's, not SigLIP's.
  """
  text = objective.text
  width, depth, mlp_dim, num_heads = text.size
  theirs = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  kind = 'clip' if clip else 'siglip'
  part = {
    'model_type': f'{kind}_text_model',
    'vocab_size': text.vocab_size,
    'max_position_embeddings': text.context,
    'hidden_size': width,
    'num_hidden_layers': depth,
    'intermediate_size': mlp_dim,
    'num_attention_heads': num_heads,
    'hidden_act': theirs[text.activation],
    'layer_norm_eps': text.ln_eps,
    'projection_dim' if clip else 'projection_size': text.projection,
    # No reader needs the others, and those that are the default may be beyond the vocabulary.
    'bos_token_id': None,
    'pad_token_id': None,
    'eos_token_id': text.end_id,
  }
  config = {
    'architectures': ['CLIPModel' if clip else 'SiglipModel'],
    'model_type': kind,
    'text_config': part,
    'vision_config': {key: x for key, x in vision.items() if key != 'architectures'},
  }
  return {**config, 'projection_dim': text.projection} if clip else config


def text_rules(depth: int, *, clip: bool) -> Iterator[Rule]:
  """The rules of all but the image tower."""
  yield same(f'{TEXT}/token_embedding/embedding', f'{EMBEDDINGS}.token_embedding.weight')
  positions = same(f'{TEXT}/pos_embedding', f'{EMBEDDINGS}.position_embedding.weight')
  yield positions._replace(write=lambda arrays: [arrays[0][0]])  # [1, L, D], theirs [L, D]
  for i in range(depth):
    yield from block(f'{TEXT}/block_{i}', f'{PREFIX}encoder.layers.{i}')
  yield from norm(f'{TEXT}/norm', f'{PREFIX}final_layer_norm')
  if clip:
    yield linear(f'{TEXT}/projection/kernel', 'text_projection.weight')
    yield linear(PROJECTION, 'visual_projection.weight')
    yield same(LOG_SCALE, 'logit_scale')
    return
  yield from dense(f'{TEXT}/projection', f'{PREFIX}head')
  for ours, theirs in ((LOG_SCALE, 'logit_scale'), (LOGIT_BIAS, 'logit_bias')):
    yield same(ours, theirs)._replace(write=lambda arrays: [np.reshape(arrays[0], 1)])


def block(ours: str, theirs: str) -> Iterator[Rule]:
  """A block of either tower."""
  yield from norm(f'{ours}/norm_1', f'{theirs}.layer_norm1')
  for name in ('query', 'key', 'value'):
    yield from dense(f'{ours}/attention/{name}', f'{theirs}.self_attn.{name[0]}_proj')
  yield from dense(f'{ours}/attention/out', f'{theirs}.self_attn.out_proj', inputs=2)
  yield from norm(f'{ours}/norm_2', f'{theirs}.layer_norm2')
  yield from mlp(f'{ours}/mlp', f'{theirs}.mlp')
