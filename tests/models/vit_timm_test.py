"""ViT against timm, random weights: where its LayerNorms stand, and images of another grid."""

import numpy as np
import pytest

from vit_jax.models.vit import ViT

torch = pytest.importorskip('torch')
try:
  from timm.models.vision_transformer import VisionTransformer
except (ImportError, RuntimeError) as error:  # a torchvision for another PyTorch
  pytest.skip(f'no timm: {error}', allow_module_level=True)

WIDTH, HEADS, MLP_DIM, DEPTH = 16, 2, 32, 2
SIZES = dict(patch_size=4, width=WIDTH, depth=DEPTH, mlp_dim=MLP_DIM, num_heads=HEADS)


def peer(*, image, **fields):
  torch.manual_seed(0)
  model = VisionTransformer(
    img_size=image, patch_size=4, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
    mlp_ratio=MLP_DIM / WIDTH, num_classes=0, **fields,
  )  # fmt: skip
  for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.3)
  return model.eval()


def linear(layer):
  return {'kernel': layer.weight.numpy().T, 'bias': layer.bias.numpy()}


def norm(layer):
  return {'scale': layer.weight.numpy(), 'bias': layer.bias.numpy()}


def attention(layer):
  params = {}
  weights, biases = layer.qkv.weight.chunk(3), layer.qkv.bias.chunk(3)
  for name, weight, bias in zip(('query', 'key', 'value'), weights, biases, strict=True):
    kernel = weight.numpy().T.reshape(WIDTH, HEADS, -1)
    params[name] = {'kernel': kernel, 'bias': bias.numpy().reshape(HEADS, -1)}
  out = linear(layer.proj)
  return {**params, 'out': {**out, 'kernel': out['kernel'].reshape(HEADS, -1, WIDTH)}}


def block(layer):
  return {
    'norm_1': norm(layer.norm1),
    'attention': attention(layer.attn),
    'norm_2': norm(layer.norm2),
    'mlp': {'fc_1': linear(layer.mlp.fc1), 'fc_2': linear(layer.mlp.fc2)},
  }


def convert(model, *, pooled_token):
  """Parameters of ours. Tokens beside patches have positions in timm: here they are added."""
  projection = model.patch_embed.proj
  bias = np.zeros(WIDTH, np.float32) if projection.bias is None else projection.bias.numpy()
  kernel = projection.weight.numpy().transpose(2, 3, 1, 0)
  prefix = model.num_prefix_tokens
  tokens = [t for t in (model.cls_token, model.reg_token) if t is not None]
  positions = model.pos_embed.numpy()
  params = {
    'embedding': {'kernel': kernel, 'bias': bias},
    'pos_embedding': positions[:, prefix:],
    'norm': norm(model.norm if isinstance(model.fc_norm, torch.nn.Identity) else model.fc_norm),
    **{f'block_{i}': block(layer) for i, layer in enumerate(model.blocks)},
  }
  others = torch.cat(tokens, 1).numpy() + positions[:, :prefix] if tokens else positions[:, :0]
  if pooled_token:
    params['cls'], others = others[:, :1], others[:, 1:]
    zero = np.zeros_like(positions[:, :1])
    params['pos_embedding'] = np.concatenate([zero, params['pos_embedding']], 1)
  if others.shape[1]:
    params['registers'] = others
  if not isinstance(model.norm_pre, torch.nn.Identity):
    params['pre_norm'] = norm(model.norm_pre)
  return params


@torch.no_grad()
def check(theirs, ours, shape):
  """Each block's tokens, the last ones, and the pooled vector."""
  image = torch.rand(2, 3, *shape)
  outputs = []
  for layer in theirs.blocks:
    layer.register_forward_hook(lambda *args: outputs.append(args[-1].numpy()))
  tokens = theirs.forward_features(image)
  pooled = theirs.forward_head(tokens, pre_logits=True).numpy()
  prefix = theirs.num_prefix_tokens
  params = convert(theirs, pooled_token=ours.pooling == 'token')
  out = ours.apply(
    {'params': params}, image.permute(0, 2, 3, 1).numpy(), train=False, blocks=range(DEPTH)
  )
  for mine, other in zip(out.blocks, outputs, strict=True):
    np.testing.assert_allclose(mine, other[:, prefix:], atol=2e-5)
  np.testing.assert_allclose(out.tokens, tokens[:, prefix:].numpy(), atol=2e-5)
  np.testing.assert_allclose(out.pooled, pooled, atol=2e-5)


@pytest.mark.parametrize('registers', [0, 2])
def test_a_norm_before_the_blocks_is_that_of_clip(registers):
  theirs = peer(image=8, pre_norm=True, reg_tokens=registers, act_layer='quick_gelu')
  assert theirs.patch_embed.proj.bias is None
  ours = ViT(**SIZES, pre_norm=True, registers=registers, activation='quick_gelu')
  check(theirs, ours, (8, 8))


# A class token that is not looked at, as in MAE's and BEiT's, is a register of ours.
@pytest.mark.parametrize('class_token', [False, True])
@pytest.mark.parametrize('fc_norm', [True, False])
def test_a_norm_after_pooling_is_fc_norm(fc_norm, class_token):
  theirs = peer(image=8, global_pool='avg', fc_norm=fc_norm, class_token=class_token)
  ours = ViT(**SIZES, pooling='mean', norm_after_pooling=fc_norm, registers=int(class_token))
  check(theirs, ours, (8, 8))


@pytest.mark.parametrize('shape', [(8, 12), (20, 16), (4, 24)])
@pytest.mark.parametrize('pooling', ['token', 'mean'])
def test_images_of_another_grid_as_with_a_dynamic_image_size(pooling, shape):
  avg = pooling == 'mean'
  theirs = peer(
    image=(8, 12), dynamic_img_size=True, pre_norm=True,
    global_pool='avg' if avg else 'token', class_token=not avg,
  )  # fmt: skip
  ours = ViT(**SIZES, pooling=pooling, grid=(2, 3), pre_norm=True, norm_after_pooling=avg)
  check(theirs, ours, shape)
