"""A model of images and of texts, in one space: `vit_jax.load` makes it of a CLIP."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import numpy as np

from vit_jax.adapters.layout import Preprocessing
from vit_jax.adapters.read import Report
from vit_jax.build import build
from vit_jax.data.texts import check_templates
from vit_jax.data.tokenizers.base import Tokenizer
from vit_jax.evaluators.zero_shot import classifier
from vit_jax.model import BATCH_SIZE, Model


class ImageTextModel(Model):
  """A `Model` with a text tower; called, it gives the embeddings of images.

  Attributes:
    tokenizer_spec: what `build` makes the tokenizer of; None where nobody says it.
  """

  def __init__(
    self,
    objective: nn.Module,
    variables: Mapping[str, Any],
    preprocessing: Preprocessing,
    report: Report,
    spec: Mapping[str, Any],
    classes: Sequence[str] = (),
    tokenizer_spec: Mapping[str, Any] | None = None,
  ):
    """Takes what `load` has made."""
    super().__init__(objective, variables, preprocessing, report, spec, classes)
    self.tokenizer_spec = tokenizer_spec

  @functools.cached_property
  def tokenizer(self) -> Tokenizer:
    """From a text to `[L]` int32.

    Raises:
      ValueError: nobody says which it is.
    """
    if self.tokenizer_spec is None:
      raise ValueError(
        f'nobody says the tokenizer of {self.report.origin}; set model.tokenizer, such as '
        "vit_jax.data.tokenizers.sentencepiece.SentencePiece('spiece.model')"
      )
    return build(self.tokenizer_spec)

  def replaced(
    self, objective: nn.Module, variables: Mapping[str, Any], spec: Mapping[str, Any]
  ) -> 'ImageTextModel':
    """The same with another module, its variables, and what `build` makes it of."""
    rest = self.preprocessing, self.report, spec, self.classes, self.tokenizer_spec
    return ImageTextModel(objective, variables, *rest)

  def embeddings(
    self, images: Any, *, batch_size: int = BATCH_SIZE, preprocessed: bool = False
  ) -> np.ndarray:
    """Where images lie in the space that they share with texts, `[N, D]` float32 of length 1.

    Raises:
      ValueError: as of a call.
    """
    return self._apply('embeddings', images, batch_size, preprocessed)

  def text_embeddings(self, texts: Sequence[str], *, batch_size: int = BATCH_SIZE) -> np.ndarray:
    """Where texts lie in the space that they share with images, `[M, D]` float32 of length 1.

    Raises:
      ValueError: there are no texts, or nobody says its tokenizer.
    """
    if isinstance(texts, str) or not len(texts):
      raise ValueError(f'texts are a list of one or more strings, not {texts!r}')
    return self._encode(np.stack([self.tokenizer(text) for text in texts]), batch_size)

  def classifier(
    self, labels: Sequence[str], templates: Sequence[str] = ('a photo of a {}.',)
  ) -> np.ndarray:
    """Where labels lie, `[K, D]` float32 of length 1: the mean over the templates, scaled again.

    Raises:
      ValueError: there are no labels, nobody says the tokenizer, or a template has no single `{}`.
    """
    check_templates(templates)
    if isinstance(labels, str) or not len(labels):
      raise ValueError(f'labels are a list of one or more strings, not {labels!r}')
    size = min(BATCH_SIZE, len(labels) * len(templates))
    return classifier(self._encode, self.tokenizer, labels, templates, batch_size=size)

  def similarity(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """The logits `[N, M]` of embeddings `[N, D]` of images and `[M, D]` of texts, float32.

    Their softmax over texts is how likely each is; with `objective.loss` 'sigmoid', each pair's
    sigmoid.
    """
    return np.asarray(self.objective.apply(self.variables, image, text, method='similarity'))

  def _encode(self, tokens: np.ndarray, batch_size: int = BATCH_SIZE) -> np.ndarray:
    return self._in_batches('text_embeddings', 'text', tokens, batch_size)
