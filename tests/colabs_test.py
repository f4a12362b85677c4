"""Every notebook runs from top to bottom."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'colabs').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, tmp_path):
  cells = json.loads(path.read_text())['cells']
  code = '\n\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'code')
  # The whole notebook, on fewer steps.
  assert '--config.total.epochs=5' in code
  code = code.replace('--config.total.epochs=5', '--config.total.steps=2')
  ran = subprocess.run(
    [sys.executable, '-W', 'error::DeprecationWarning', '-c', code],
    env={**os.environ, 'PYTHONPATH': str(ROOT), 'TMPDIR': str(tmp_path)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert ran.returncode == 0, ran.stderr
  assert '2 steps' in ran.stdout and 'taken for' in ran.stdout
  assert (tmp_path / 'vit_emoji_notebook' / 'report.html').exists()
