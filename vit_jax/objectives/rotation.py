"""Rotation: by how many quarter turns was an image turned?"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.losses import classification
from vit_jax.models.head import linear_head
from vit_jax.objectives import inputs
from vit_jax.sharding import constrain

TURNS = 4


class Rotation(nn.Module):
  """An encoder and a linear head that tell four rotations. Gidaris et al. 2018, arXiv:1803.07728.

  Augmentations that turn or mirror up and down take the answer away; one that mirrors left and
  right does not.

  Attributes:
    encoder: images to `Features`.
    all_rotations: whether each image is seen in all four rotations, side by side in one batch,
      which Section 2.2 finds better; the encoder then takes 4 B images. Else in one, drawn for it.
    augment: device transforms in training, the same for all rotations of an image.
    eval_augment: device transforms in evaluation, such as a fixed background behind transparent
      drawings.
    mean: what pixels in [0, 1] are normalised by: a number, or one a channel.
    std: likewise.
  """

  encoder: nn.Module
  all_rotations: bool = True
  augment: str = ''
  eval_augment: str = ''
  mean: float | tuple[float, ...] = 0.5
  std: float | tuple[float, ...] = 0.5

  def setup(self) -> None:
    """Makes the head, of zeros: the loss starts at its chance value, log 4."""
    self.head = linear_head(TURNS)

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The loss of a batch, Eq. 2 and 3, and its metrics by example.

    Args:
      batch: `image [B, H, H, C]` uint8; in evaluation `id [B]` too, unless all rotations are seen.
      train: whether to augment and to drop, and to draw rotations anew.

    Returns:
      The mean loss, and `loss [B]` and `accuracy [B]`, means over an image's rotations.

    Raises:
      ValueError: images that are not square.
    """
    image = self._image(batch, train=train)
    size = image.shape[0]
    if self.all_rotations:
      turns = jnp.tile(jnp.arange(TURNS), size)  # [B * 4]
      image = jnp.repeat(image, TURNS, axis=0)
    else:
      turns = self._draw(batch, train=train)
    logits = self._classify(turn(image, turns), train=train)
    loss = classification.softmax_cross_entropy(logits, turns)
    correct = (jnp.argmax(logits, axis=-1) == turns).astype(jnp.float32)
    loss, correct = (x.reshape(size, -1).mean(axis=1) for x in (loss, correct))
    return jnp.mean(loss), {'loss': loss, 'accuracy': correct}

  def features(self, batch: Batch) -> Array:
    """The encoder's pooled features `[B, D]` of `image [B, H, W, C]`, as in evaluation."""
    return self._encode(inputs.view(batch, self.eval_augment, None), train=False)

  def pictures(self, batch: Batch) -> dict[str, Array]:
    """Images `[B, H, H, C]` in [0, 1]: as they are, turned, and turned back by what is told."""
    image, turns = self._image(batch, train=False), self._draw(batch, train=False)
    turned = turn(image, turns)
    told = jnp.argmax(self._classify(turned, train=False), axis=-1)
    return {'image': image, 'turned': turned, 'turned back': turn(turned, -told)}

  def _image(self, batch: Batch, *, train: bool) -> Array:
    image = inputs.augmented(self, batch, train=train)
    height, width = image.shape[1:3]
    if height != width:
      raise ValueError(
        f'Rotation turns square images, not {height}x{width}; crop or resize them on the host'
      )
    return image

  def _draw(self, batch: Batch, *, train: bool) -> Array:
    """How often each image is turned, `[B]`."""
    keys = inputs.example_keys(batch, self.make_rng('augment') if train else None)
    return jax.vmap(lambda key: jax.random.randint(key, (), 0, TURNS))(keys)

  def _classify(self, image: Array, *, train: bool) -> Array:
    logits = self.head(self._encode(image, train=train).astype(jnp.float32))  # [B, 4]
    return constrain(logits, 'batch', 'classes')

  def _encode(self, image: Array, *, train: bool) -> Array:
    return self.encoder(inputs.normalize(image, self.mean, self.std), train=train).pooled


def turn(image: Array, turns: Array) -> Array:
  """Turns each square image counterclockwise, as `np.rot90` does.

  Args:
    image: `[B, H, H, C]`.
    turns: `[B]` int, quarter turns; of any sign.
  """
  turns = turns[:, None, None, None]
  # Two choices rather than one of four, by the bits of the number.
  image = jnp.where(turns & 2, image[:, ::-1, ::-1], image)
  return jnp.where(turns & 1, jnp.rot90(image, axes=(1, 2)), image)
