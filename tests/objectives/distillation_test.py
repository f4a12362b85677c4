"""The distance from a frozen teacher's answers to the very same view."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.build import build
from vit_jax.state import streams

B, SIDE, K = 6, 8, 4


def encoder(width):
  return dict(
    type='models.vit.ViT',
    patch_size=4,
    width=width,
    depth=1,
    num_heads=2,
    mlp_dim=16,
    pooling='mean',
  )


def make(student=(), teacher=(), **fields):
  return build(
    {
      'type': 'objectives.distillation.Distillation',
      'student': dict(
        type='objectives.supervised.Supervised', num_classes=K, encoder=encoder(8), **dict(student)
      ),
      'teacher': dict(
        type='objectives.supervised.Supervised', num_classes=K, encoder=encoder(16), **dict(teacher)
      ),
      **fields,
    }
  )


def batch_of(seed=0):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (B, SIDE, SIDE, 3), np.uint8),
    'label': rng.integers(0, K, B).astype(np.int32),
    'id': np.arange(B, dtype=np.int32),
  }


def init(objective):
  """Variables with heads that say something."""
  variables = nn.unbox(
    jax.jit(lambda: objective.init(jax.random.key(0), batch_of(), train=False))()
  )
  leaves, tree = jax.tree.flatten(variables)
  rng = np.random.default_rng(1)
  leaves = [x + 0.3 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
  return jax.tree.unflatten(tree, leaves)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def teacher_of(variables):
  return variables['teacher']['frozen']['variables']


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_the_loss_is_the_divergence_of_two_softmaxes(temperature):
  objective = make(temperature=temperature)
  variables, batch = init(objective), batch_of()
  loss, metrics = objective.apply(variables, batch, train=False)
  student = objective.student.apply(
    {'params': variables['params']['student']}, batch, method='logits'
  )
  teacher = objective.teacher.apply(teacher_of(variables), batch, method='logits')
  p, q = softmax(np.asarray(teacher) / temperature), softmax(np.asarray(student) / temperature)
  expected = [
    temperature**2 * sum(a * np.log(a / b) for a, b in zip(*rows, strict=True))
    for rows in zip(p, q, strict=True)
  ]
  np.testing.assert_allclose(metrics['loss'], expected, rtol=2e-4, atol=1e-6)
  np.testing.assert_allclose(loss, np.mean(expected), rtol=2e-4)
  agree = np.argmax(student, -1) == np.argmax(teacher, -1)
  np.testing.assert_array_equal(metrics['agreement'], agree)
  np.testing.assert_array_equal(metrics['accuracy'], np.argmax(student, -1) == batch['label'])


def test_only_the_student_is_trained():
  objective = make()
  variables, batch = init(objective), batch_of()
  assert set(variables) == {'params', 'teacher'} and set(variables['params']) == {'student'}

  def loss(variables):
    return objective.apply(variables, batch, train=True, rngs=streams(jax.random.key(2)))[0]

  grads = jax.grad(loss)(variables)
  assert all(not np.any(g) for g in jax.tree.leaves(grads['teacher']))
  assert all(np.any(g) for g in jax.tree.leaves(grads['params']['student']['head']))
  # The step hands the collection on as it is.
  _, after = objective.apply(
    variables, batch, train=True, rngs=streams(jax.random.key(2)), mutable=['teacher']
  )
  for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(variables['teacher']), strict=True):
    np.testing.assert_array_equal(a, b)


def test_both_look_at_the_same_view(monkeypatch):
  objective = make(student=dict(augment='flip | color_distort(0.8)', mix='mixup(0.8)'))
  variables, seen = init(objective), []
  supervised = type(objective.teacher)
  classify = supervised.classify

  def spy(self, image, *, train):
    seen.append((image, train))
    return classify(self, image, train=train)

  monkeypatch.setattr(supervised, 'classify', spy)
  objective.apply(variables, batch_of(), train=True, rngs=streams(jax.random.key(3)))
  (student, student_train), (teacher, teacher_train) = seen
  np.testing.assert_array_equal(student, teacher)
  assert student_train and not teacher_train
  assert not np.allclose(student, batch_of()['image'] / 255)  # It is augmented, and mixed.


def test_the_teacher_normalises_as_it_was_trained():
  objective = make(teacher=dict(mean=0.2, std=0.3))
  variables, batch = init(objective), batch_of()
  image = (jnp.asarray(batch['image']) / 255).astype(jnp.float32)
  got = objective.apply(variables, image, method=lambda self, image: self.frozen(image))
  wanted = objective.teacher.apply(teacher_of(variables), batch, method='logits')
  np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_what_cannot_be():
  with pytest.raises(ValueError, match='temperature must be positive, got 0'):
    make(temperature=0).init(jax.random.key(0), batch_of(), train=False)
  with pytest.raises(ValueError, match='the student has 4 classes and the teacher 7'):
    build(
      {
        'type': 'objectives.distillation.Distillation',
        'student': dict(type='objectives.supervised.Supervised', num_classes=K, encoder=encoder(8)),
        'teacher': dict(type='objectives.supervised.Supervised', num_classes=7, encoder=encoder(8)),
      }
    ).init(jax.random.key(0), batch_of(), train=False)
