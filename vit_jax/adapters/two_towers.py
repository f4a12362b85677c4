"""From an image tower and a text tower to the layout of both, whatever the format."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from vit_jax.adapters.layout import Layout, published_heads
from vit_jax.adapters.mapping import Rule
from vit_jax.adapters.tensors import Tensors
from vit_jax.adapters.timm_models import HEADS
from vit_jax.models.sizes import Size
from vit_jax.models.text import VARIANTS

TEXT = 'params/text'
PROJECTION = 'params/image_projection/kernel'
LOG_SCALE, LOGIT_BIAS = 'params/log_scale', 'params/logit_bias'

CLIP_VOCAB, CLIP_CONTEXT = 49408, 77  # Section 2.4, arXiv:2103.00020; its published code.
SIGLIP_VOCABS = (32000, 250000)  # of T5's English pieces, and of mT5's: big_vision's configs
# A model of pieces may lie beside the weights, by one of these names.
PIECES = ('spiece.model', 'tokenizer.model')


def join(
  tensors: Tensors,
  image: Layout,
  text: Mapping[str, Any],
  rules: Iterable[Rule],
  *,
  projection: int | None,
  tokenizer: Mapping[str, Any] | None,
) -> Layout:
  """A layout of both towers.

  Files with a 'logit_bias' are compared by sigmoids. Published code bounds the scale in training
  alone; it is bounded here where the file's is not beyond that.

  Args:
    tensors: the arrays of the file; its scale is read.
    image: of the image tower alone.
    text: what `build` makes the text tower of.
    rules: of all that is no part of the image tower.
    projection: outputs of a linear layer on the images' features; None for no such layer.
    tokenizer: what `build` makes the tokenizer of; None where nobody knows.

  Raises:
    ValueError: the file has no scale.
  """
  if 'logit_scale' not in tensors:
    raise ValueError(f"{tensors.path} has no 'logit_scale', which its format has")
  sigmoid = 'logit_bias' in tensors
  fields = {'type': 'objectives.clip.CLIP', 'image': image.objective['encoder'], 'text': dict(text)}
  if projection is not None:
    fields['projection'] = projection
  fields['loss'] = 'sigmoid' if sigmoid else 'softmax'
  if sigmoid or float(tensors['logit_scale'].max()) > math.log(100):
    fields['max_scale'] = math.inf
  fields |= {name: image.objective[name] for name in ('mean', 'std')}
  rules = [*map(as_image, image.rules), *rules]
  return dataclasses.replace(
    image, objective=fields, rules=rules, classes=(), tokenizer=tokenizer and dict(tokenizer)
  )


def as_image(rule: Rule) -> Rule:
  """The rule of an encoder, of the variables that it has as the image tower."""
  ours = (re.sub(r'^(\w+)/encoder/', r'\1/image/', name) for name in rule.ours)
  return rule._replace(ours=tuple(ours))


def text_spec(size: Size, vocab_size: int, context: int, **fields: Any) -> dict[str, Any]:
  """What `build` makes a text tower of, by its variant where it is a published one.

  Args:
    size: of the transformer.
    vocab_size: tokens there are.
    context: positions there are.
    **fields: others; those that are None are left out.
  """
  name = next((name for name, known in VARIANTS.items() if known == size), None)
  return {
    'type': 'models.text.TextTransformer',
    'vocab_size': vocab_size,
    **({'variant': name} if name else size._asdict()),
    'context': context,
    **{key: value for key, value in fields.items() if value is not None},
  }


def clip_tokenizer(vocab_size: int, context: int) -> dict[str, Any] | None:
  """CLIP's, where the vocabulary is of its size; None for another one."""
  if vocab_size != CLIP_VOCAB:
    return None
  spec = {'type': 'data.tokenizers.clip.ClipBpe'}
  return spec if context == CLIP_CONTEXT else {**spec, 'context': context}


def pieces_tokenizer(
  files: Mapping[str, Any], vocab_size: int, context: int
) -> dict[str, Any] | None:
  """SigLIP's, where its model of pieces lies beside the weights; None where it does not.

  Args:
    files: what lies beside the weights, by name; of a model of pieces its path.
    vocab_size: of the text tower. SigLIP 2 has another tokenizer, and another vocabulary.
    context: of the text tower.
  """
  path = next((files[name] for name in PIECES if name in files), None)
  if path is None or vocab_size not in SIGLIP_VOCABS:
    return None
  spec = {'type': 'data.tokenizers.sentencepiece.SentencePiece', 'model': path}
  return {**spec, 'context': context}


def needs_pieces(files: Mapping[str, Any]) -> bool:
  """Whether what lies beside weights says that they are SigLIP's."""
  text = (files.get('open_clip_config.json') or {}).get('model_cfg', {}).get('text_cfg', {})
  kind = (files.get('config.json') or {}).get('model_type', '')
  return kind == 'siglip' or 'SigLIP' in (text.get('hf_tokenizer_name') or '')


def check_dims(path: str, image: int, text: int) -> None:
  """Raises ValueError where embeddings of images and of texts are not of one length."""
  if image != text:
    raise ValueError(
      f'{path} has embeddings of {image} features of images and of {text} of texts, which cannot '
      'be compared: its towers are not of one model'
    )


def heads_of(width: int, depth: int, mlp_dim: int) -> int | None:
  """The attention heads of a tower of which no file says them; None for no published width.

  They are those of the published size, else one for every 64 features, as in CLIP's code.
  """
  known = published_heads(width, depth, mlp_dim) or HEADS.get((width, depth, mlp_dim))
  return known or (None if width % 64 else width // 64)
