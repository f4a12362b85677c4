"""Image-text retrieval: which image does a caption mean, and which caption has an image?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from vit_jax import sharding
from vit_jax.arrays import Array, Batch
from vit_jax.build import build
from vit_jax.data.texts import check_templates
from vit_jax.evaluators import apply
from vit_jax.evaluators.captions import DIRECTIONS, Captioned, Pairs, captioned_sources, check_k
from vit_jax.evaluators.neighbors import nearest
from vit_jax.evaluators.zero_shot import classifier

PICTURES = 6  # images of each source that are drawn


class ImageTextRetrieval:
  """Recall@k of images by captions and of captions by images, as arXiv:1412.2306 counts.

  It is the protocol of Flickr30k and COCO, which arXiv:2103.00020 follows: N images with one or
  several captions each, M in all. `text_to_image/recall@k`: each of the M captions is a query, and
  right if its image is among the k most similar of all N. `image_to_text/recall@k`: each of the N
  images is a query, and right if any of its captions is among the k most similar of all M. Beside
  each stands its `_chance`, what an order drawn at random finds on average.

  A caption belongs to its own image alone, also where another image has the same text, as COCO
  counts; of equally similar candidates the first one comes first. Where texts repeat,
  `same_text=True` counts every image with the text as right, and such ties change nothing.
  """

  def __init__(
    self,
    objective: nn.Module,
    mesh: Mesh,
    *,
    writer: Any = None,
    tokenizer: Any,
    source: Any = None,
    sources: Mapping[str, Any] | None = None,
    host: str = 'decode',
    batch_size: int = 256,
    num_workers: int = 0,
    max_bad_share: float = 0.01,
    captions: int | None = None,
    templates: Sequence[str] = ('{}',),
    group: str | None = None,
    same_text: bool = False,
    k: Sequence[int] = (1, 5, 10),
    chance: bool = True,
    method: str = 'embeddings',
    text_method: str = 'text_embeddings',
  ):
    """Builds the sources and the tokenizer, and reads the captions.

    Args:
      objective: has the two methods.
      mesh: the mesh.
      writer: takes the pictures of the last run: answer cards, and similarities of some images and
        their captions; None draws none.
      tokenizer: the objective's tokenizer or its spec, `dict(type='data.tokenizers.clip.ClipBpe')`.
      source: a source or its spec, whose examples have `text`, a string or several; or
      sources: several by name, which comes before their metrics: `coco/text_to_image/recall@1`.
      host: host transforms of the images; those of texts have no place here.
      batch_size: images a batch, and texts a batch; the result does not depend on it.
      num_workers: processes that decode; 0 decodes in this one.
      max_bad_share: up to this share, images that do not decode or have no caption are named and
        left out, with their captions.
      captions: so many captions of each image, the first ones: 5 for COCO, where some images have
        more, and 1 for a name before its keywords. None is all.
      templates: texts with one `{}` each, where a caption belongs; over several it is the mean of
        the embeddings, with length 1 again.
      group: a field of the examples: those with the same value are one image, the first's, with the
        captions of all, for sources of pairs that repeat an image for every caption.
      same_text: whether a caption is right for every image that has the very same text.
      k: numbers of candidates among which a right one must be.
      chance: adds `_chance`.
      method: from a batch of images to embeddings `[B, D]` of length 1.
      text_method: from a batch of `text [B, L]` to embeddings `[B, D]` of length 1.

    Raises:
      ValueError: the objective lacks a method (those it has are listed), no source is given, one
        has no texts or no field `group`, a k is not between 1 and its images, or a template has no
        single `{}`.
    """
    self.method = apply.method_of(objective, method, evaluator='image_text_retrieval')
    text_method = apply.method_of(objective, text_method, evaluator='image_text_retrieval')
    check_templates(templates)
    self.sources = captioned_sources(source, sources, captions=captions, group=group, k=k)
    self.tokenizer = build(tokenizer) if isinstance(tokenizer, Mapping) else tokenizer
    self.objective, self.mesh, self.writer = objective, mesh, writer
    self.templates, self.same_text = tuple(templates), same_text
    self.k, self.chance = tuple(k), chance
    shards = sharding.batch_shards(mesh)
    self.batch_size = -(-batch_size // shards) * shards
    self.options = dict(
      host=host, batch_size=batch_size, num_workers=num_workers, max_bad_share=max_bad_share
    )
    self._images = apply.jit(self._apply, mesh)
    self._texts = apply.jit(
      lambda variables, text: objective.apply(variables, {'text': text}, method=text_method), mesh
    )

  def run(self, state: Any, *, final: bool = False) -> dict[str, float]:
    """Searches in both directions.

    Args:
      state: has `step`, `params` and `model_state`.
      final: whether this is the last run: draws the pictures.

    Returns:
      `text_to_image/recall@1` and so on, each with `_chance`, in [0, 1]; after `<source>/` where
      there are several sources.

    Raises:
      ValueError: embeddings that are not finite, or fewer images decode than a k.
    """
    variables = apply.variables_of(state)
    results = {}
    for name, source in self.sources.items():
      draw = final and self.writer is not None
      images, kept, shown = self._see(variables, source, PICTURES if draw else 0)
      check_k(self.k, len(kept))
      pairs = Pairs([source.texts[i] for i in kept], same_text=self.same_text)
      texts = self._read(variables, pairs.captions)
      for direction, found in zip(DIRECTIONS, ((texts, images), (images, texts)), strict=True):
        values = self._judge(pairs, direction, *found)
        start = f'{apply.prefix(name)}{direction}/'
        results |= {start + key: value for key, value in values.items()}
      if shown:
        step = int(state.step)
        self._draw(step, name, variables, shown, images[list(shown)], pairs, texts)
    return results

  def _apply(self, variables: Any, batch: Batch) -> tuple[Array, Array]:
    return self.objective.apply(variables, batch, method=self.method), batch['_mask']

  def _see(
    self, variables: Any, source: Captioned, count: int
  ) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """Looks at the images that decode.

    Returns:
      Their embeddings [N, D] float32; which ones these are, [N]; and `count` of the images
      themselves, by their place among the N.
    """
    chosen = set(np.linspace(0, len(source) - 1, count).round().astype(int).tolist())
    parts, masks, shown, seen, kept = [], [], {}, 0, 0
    for batch in apply.batches(source, self.mesh, **self.options):
      made, mask = self._images(variables, batch)
      mask = mask.astype(bool)
      rows = np.flatnonzero(mask)
      new = {kept + i: row for i, row in enumerate(rows.tolist()) if seen + row in chosen}
      pixels = apply.fetch(batch['image'], self.mesh) if new else ()
      shown |= {place: pixels[row] for place, row in new.items()}
      parts.append(made[mask].astype(np.float32))
      masks.append(mask)
      seen, kept = seen + len(mask), kept + len(rows)
    return np.concatenate(parts), np.flatnonzero(np.concatenate(masks)), shown

  def _read(self, variables: Any, captions: Sequence[str]) -> np.ndarray:
    """Embeddings [M, D] float32 of the captions, the very same for the same text."""
    split = sharding.batch_sharding(self.mesh)

    def encode(tokens: np.ndarray) -> np.ndarray:
      text = jax.make_array_from_callback(tokens.shape, split, lambda index: tokens[index])
      return self._texts(variables, text)

    texts = {text: i for i, text in enumerate(dict.fromkeys(captions))}
    made = classifier(encode, self.tokenizer, [*texts], self.templates, batch_size=self.batch_size)
    return made[[texts[text] for text in captions]]

  def _judge(
    self, pairs: Pairs, direction: str, queries: np.ndarray, candidates: np.ndarray
  ) -> dict[str, float]:
    _, found = nearest(queries, candidates, max(self.k), self.mesh)  # [Q, k]
    right = [
      [one in wanted for one in row]
      for row, wanted in zip(found.tolist(), pairs.right[direction], strict=True)
    ]
    right = np.array(right)  # [Q, k]
    results = {}
    for k in self.k:
      results[f'recall@{k}'] = float(right[:, :k].any(1).mean())
      if self.chance:
        results[f'recall@{k}_chance'] = pairs.chance(direction, k)
    return results

  def _draw(
    self,
    step: int,
    name: str,
    variables: Any,
    shown: Mapping[int, np.ndarray],
    images: np.ndarray,
    pairs: Pairs,
    texts: np.ndarray,
  ) -> None:
    from vit_jax.plots import answers, similarity

    own = [min(pairs.right['image_to_text'][i]) for i in shown]  # their first captions
    pictures, captions = list(shown.values()), [pairs.captions[i] for i in own]
    start, title = apply.prefix(name), f'{name}: ' if name else ''
    picture = similarity.similarity(
      pictures, captions, images @ texts[own].T, title=f'{title}cosines'
    )
    self.writer.picture(step, f'{start}similarity', picture)
    if 'similarity' not in apply.methods_of(self.objective):
      return  # Nobody says what cosines are multiplied by.
    # Of equal captions the first one stands for all.
    unique = {text: i for i, text in reversed(list(enumerate(pairs.captions)))}
    logits = self.objective.apply(
      variables, images, texts[list(unique.values())], method='similarity'
    )
    truths = [list(unique).index(text) for text in captions]
    picture = answers.answers(
      pictures,
      list(unique),
      np.asarray(jax.nn.softmax(logits)),
      truths,
      title=f'{title}the best of {len(unique)} captions',
    )
    self.writer.picture(step, f'{start}answers', picture)
