"""ViT against three models of `transformers` 5, random weights: one for each pooling."""

import numpy as np
import pytest

from vit_jax.models.vit import ViT

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

WIDTH, HEADS, MLP_DIM, DEPTH = 16, 2, 24, 2


def linear(weight, bias):
  return {'kernel': weight.numpy().T, 'bias': bias.numpy()}


def norm(layer):
  return {'scale': layer.weight.numpy(), 'bias': layer.bias.numpy()}


def embedding(layer):
  return {'kernel': layer.weight.numpy().transpose(2, 3, 1, 0), 'bias': layer.bias.numpy()}


def mlp(layer):
  return {f'fc_{i}': linear(fc.weight, fc.bias) for i, fc in ((1, layer.fc1), (2, layer.fc2))}


def attention(weights, biases, out):
  params = {
    name: {
      'kernel': weight.numpy().T.reshape(WIDTH, HEADS, -1),
      'bias': bias.numpy().reshape(HEADS, -1),
    }
    for name, weight, bias in zip(('query', 'key', 'value'), weights, biases, strict=True)
  }
  kernel = out.weight.numpy().T.reshape(HEADS, -1, WIDTH)
  return {**params, 'out': {'kernel': kernel, 'bias': out.bias.numpy()}}


def blocks(layers, norm_1, attn, out, norm_2):
  params = {}
  for i, layer in enumerate(layers):
    mha = getattr(layer, attn)
    qkv = mha.q_proj, mha.k_proj, mha.v_proj
    params[f'block_{i}'] = {
      'norm_1': norm(getattr(layer, norm_1)),
      'attention': attention([p.weight for p in qkv], [p.bias for p in qkv], getattr(mha, out)),
      'norm_2': norm(getattr(layer, norm_2)),
      'mlp': mlp(layer.mlp),
    }
  return params


def from_vit(model):
  """Of `ViTModel`, whose pooler is `pre_logits`, or `IJepaModel`, which has no class token."""
  params = {
    'embedding': embedding(model.embeddings.patch_embeddings.projection),
    'pos_embedding': model.embeddings.position_embeddings.numpy(),
    'norm': norm(model.layernorm),
    **blocks(model.layers, 'layernorm_before', 'attention', 'o_proj', 'layernorm_after'),
  }
  if isinstance(model, transformers.ViTModel):
    params['cls'] = model.embeddings.cls_token.numpy()
    params['pre_logits'] = linear(model.pooler.dense.weight, model.pooler.dense.bias)
  return params


def from_siglip(model):
  mha = model.head.attention
  return {
    'embedding': embedding(model.embeddings.patch_embedding),
    'pos_embedding': model.embeddings.position_embedding.weight.numpy()[None],
    'norm': norm(model.post_layernorm),
    **blocks(model.encoder.layers, 'layer_norm1', 'self_attn', 'out_proj', 'layer_norm2'),
    'map_head': {
      'probe': model.head.probe.numpy(),
      'attention': attention(mha.in_proj_weight.chunk(3), mha.in_proj_bias.chunk(3), mha.out_proj),
      'norm': norm(model.head.layernorm),
      'mlp': mlp(model.head.mlp),
    },
  }


@pytest.mark.parametrize('name', ['ViT', 'IJepa', 'SiglipVision'])
@torch.no_grad()
def test_equals_transformers(name):
  config = getattr(transformers, f'{name}Config')(
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=MLP_DIM,
    image_size=8,
    patch_size=4,
    layer_norm_eps=1e-5,
  )
  theirs = getattr(transformers, f'{name}Model')(config).eval()
  torch.manual_seed(0)
  for parameter in theirs.parameters():
    parameter.normal_(std=0.3)
  image = torch.rand(2, 3, 8, 8)
  expected = theirs(pixel_values=image)
  tokens = expected.last_hidden_state.numpy()

  sizes = dict(patch_size=4, width=WIDTH, depth=DEPTH, mlp_dim=MLP_DIM, num_heads=HEADS)
  if name == 'ViT':
    model = ViT(**sizes, ln_eps=1e-5, pooling='token', pre_logits=WIDTH)
    params, pooled = from_vit(theirs), expected.pooler_output.numpy()
    tokens = tokens[:, 1:]
  elif name == 'IJepa':
    model = ViT(**sizes, ln_eps=1e-5, pooling='mean')
    params, pooled = from_vit(theirs), tokens.mean(1)
  else:
    model = ViT(**sizes, ln_eps=1e-5, pooling='map', activation='gelu_tanh')
    params, pooled = from_siglip(theirs), expected.pooler_output.numpy()
  ours = model.apply({'params': params}, image.permute(0, 2, 3, 1).numpy(), train=False)
  np.testing.assert_allclose(ours.tokens, tokens, atol=1e-5)
  np.testing.assert_allclose(ours.pooled, pooled, atol=1e-5)
