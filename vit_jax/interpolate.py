"""Models on the line between two. WiSE-FT: Wortsman et al. 2021, arXiv:2109.01903.

Between the weights before fine-tuning and those after it there often are some that do as well on
the new data, and better on other data, than either end.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import config as config_lib
from vit_jax import experiment, workdirs
from vit_jax.adapters.read import Report
from vit_jax.checkpoint import named
from vit_jax.choices import listed
from vit_jax.model import Model


def mix(start: Any, end: Any, alpha: float) -> Any:
  """`(1 - alpha) start + alpha end`, leaf by leaf. Eq. 1, arXiv:2109.01903.

  Args:
    start: a tree of arrays, or None.
    end: the same structure and shapes. What is no floating-point number, such as a counter, is
      that of `end`.
    alpha: the share of `end`, in [0, 1]; 0 and 1 give the two ends exactly.

  Raises:
    ValueError: alpha is out of its range, or the trees differ (the first difference is named).
  """
  _check_alpha(alpha)
  _check_alike(named(start), named(end))

  def between(a: Any, b: Any) -> Any:
    if alpha == 1 or not jnp.issubdtype(b.dtype, jnp.floating):
      return b
    return (1 - alpha) * a + alpha * b if alpha else a

  return jax.tree.map(between, start, end)


def interpolate(start: Model, end: Model, alpha: float) -> Model:
  """The model on the line between two that `load` made; see `mix`.

  Args:
    start: such as `vit_jax.load(checkpoint, num_classes=n, image_size=size)`, and
    end: what became of it, `vit_jax.load(workdir)`, of which the result has all but the weights.
    alpha: the share of `end`.

  Raises:
    ValueError: their variables have other names or shapes, or alpha is out of its range.
  """
  variables = mix(start.variables, end.variables, alpha)
  origin = f'{1 - alpha:g} x {start.report.origin} + {alpha:g} x {end.report.origin}'
  report = Report(origin, loaded={name: x.size for name, x in named(variables).items()})
  return Model(end.objective, variables, end.preprocessing, report, end.spec, end.classes)


def evaluate(
  workdir: str | Path,
  alphas: Sequence[float],
  step: str | int = 'last',
  overrides: Sequence[str] = (),
) -> dict[float, dict[str, float]]:
  """Runs a run's evaluators between its first state and one of its checkpoints.

  The first state is made anew, by the run's seed and `init_from`. What evaluators read of
  collections, such as batch statistics, and averaged parameters are mixed as the parameters are.

  Args:
    workdir: the run's folder.
    alphas: shares of the checkpoint; 0 is the first state.
    step: a step, 'last' or 'best'.
    overrides: flags as on the command line.

  Returns:
    By alpha what `experiment.evaluate` gives, of the evaluators that read the state.

  Raises:
    FileNotFoundError: no run, or no such checkpoint.
    ValueError: an alpha out of its range, or a wrong override.
  """
  for alpha in alphas:
    _check_alpha(alpha)
  config = config_lib.override(workdirs.saved_config(workdir), overrides)
  made = experiment.setup(config)
  with jax.set_mesh(made.mesh), experiment.open_checkpoints(workdir, config) as checkpoints:
    make, like = experiment.prepare_state(made)
    end = checkpoints.restore(like, checkpoints.find(step))
    start, _ = experiment.new_state(made, make)
    evals = {
      name: (evaluator, every)
      for name, (evaluator, every) in experiment.build_evals(made).items()
      if getattr(evaluator, 'reads_state', True)
    }
    results = {}
    for alpha in alphas:
      fields = ('params', 'model_state', 'ema')
      mixed = {name: mix(getattr(start, name), getattr(end, name), alpha) for name in fields}
      results[alpha] = experiment.run_evals(evals, end.replace(**mixed))
    return results


def _check_alpha(alpha: float) -> None:
  if not 0 <= alpha <= 1:
    raise ValueError(f'alpha is the share of the second of two models, in [0, 1]; got {alpha}')


def _check_alike(start: dict[str, Any], end: dict[str, Any]) -> None:
  for which, names, others in (('first', start, end), ('second', end, start)):
    alone = [name for name in names if name not in others]
    if alone:
      raise ValueError(f'the two models differ: only the {which} has {listed(alone)}')
  for name, b in end.items():
    a = start[name]
    if a.shape != b.shape:
      raise ValueError(
        f'the two models differ: {name!r} is {list(a.shape)} in the first and {list(b.shape)} '
        'in the second'
      )
