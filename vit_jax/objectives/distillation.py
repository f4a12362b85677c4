"""Distillation: a student learns a teacher's answers. Beyer et al. 2021, arXiv:2106.05237."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vit_jax.arrays import Array, Batch
from vit_jax.losses import classification

# A rule of `config.init_from`: where the parameters of a run are in the state of one who learns it.
TEACHER = ('params/(.*)', r'model_state/teacher/frozen/variables/params/\1')


class Distillation(nn.Module):
  """A student that gives the answers of a frozen teacher, both looking at the very same view.

  "Function matching" (Section 3.1, arXiv:2106.05237): student and teacher see one crop,
  augmentation and mixture of images, the teacher's answer to it is computed anew, and labels play
  no part. The paper's other ingredients are in the config: mixup, and a long training.

  The teacher's variables are a collection `teacher`, which nothing trains. They are random until
  `config.init_from` takes them from a run, with the rule `TEACHER`.

  Attributes:
    student: an objective with `view`, `classify`, `logits` and `features`, such as `Supervised`;
      its augmentation and mixing are those of both.
    teacher: an objective with `classify`, which normalises images as it was trained to.
    temperature: that the logits of both are divided by.
  """

  student: nn.Module
  teacher: nn.Module
  temperature: float = 1.0

  def setup(self) -> None:
    """Raises ValueError for a temperature that is not positive, or other numbers of classes."""
    if self.temperature <= 0:
      raise ValueError(f'temperature must be positive, got {self.temperature}')
    classes = self.student.num_classes, self.teacher.num_classes
    if classes[0] != classes[1]:
      raise ValueError(f'the student has {classes[0]} classes and the teacher {classes[1]}')
    self.frozen = Frozen(self.teacher.clone(parent=None))

  @property
  def num_classes(self) -> int:
    """Outputs of both heads."""
    return self.student.num_classes

  def __call__(self, batch: Batch, *, train: bool) -> tuple[Array, dict[str, Array]]:
    """The distance of the student's answers from the teacher's, and metrics by example.

    Args:
      batch: `image [B, H, W, C]` uint8; `label [B]` or `[B, K]`, for the accuracy alone.
      train: whether the student augments, mixes and drops; the teacher never drops.

    Returns:
      The mean KL divergence, and `loss [B]`, `agreement [B]` (whether both give the same first
      answer) and `accuracy [B]` (whether the student's first answer is a label).
    """
    image, target = self.student.view(batch, train=train)
    logits = self.student.classify(image, train=train)  # [B, K]
    wanted = jax.lax.stop_gradient(self.frozen(image))  # [B, K]
    loss = classification.kl_divergence(logits, wanted, temperature=self.temperature)
    best = jnp.argmax(logits, axis=-1)
    accuracy = jnp.take_along_axis(target, best[:, None], axis=-1)[:, 0] > 0
    agreement = best == jnp.argmax(wanted, axis=-1)
    metrics = {'loss': loss, 'agreement': agreement, 'accuracy': accuracy}
    return jnp.mean(loss), {k: v.astype(jnp.float32) for k, v in metrics.items()}

  def logits(self, batch: Batch) -> Array:
    """The student's logits `[B, K]`, float32, as in evaluation."""
    return self.student.logits(batch)

  def features(self, batch: Batch) -> Array:
    """The student's pooled features `[B, D]`, as in evaluation."""
    return self.student.features(batch)


class Frozen(nn.Module):
  """A module with all of its variables in the collection `teacher`: none is a parameter."""

  module: nn.Module

  @nn.compact
  def __call__(self, image: Array) -> Array:
    """What the module's `classify` gives for `image`, as in evaluation."""
    module = self.module.clone(parent=None)

    def init() -> dict:
      return module.init(self.make_rng('params'), image, train=False, method='classify')

    variables = self.variable('teacher', 'variables', init)
    return module.apply(variables.value, image, train=False, method='classify')
