"""Residual networks of torchvision and timm: the same numbers in, and out again."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from vit_jax.adapters import timm as ours
from vit_jax.adapters.layout import Facts
from vit_jax.adapters.tensors import Tensors, open_tensors
from vit_jax.checkpoint import named
from vit_jax.models.resnet import VARIANTS
from vit_jax.pretrained import load

torch = pytest.importorskip('torch')
torchvision = pytest.importorskip('torchvision')
timm = pytest.importorskip('timm')
hub = pytest.importorskip('timm.models._hub')
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet  # noqa: E402 (after the skip)

CLASSES = 3
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
ONES = [1, 1, 1, 1]  # a block in each stage


def small_stem():
  """As SimCLR's for small images: the first convolution keeps the size, and nothing is pooled."""
  model = ResNet(BasicBlock, ONES, num_classes=CLASSES)
  model.conv1, model.maxpool = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False), torch.nn.Identity()
  return model


PEERS = {
  'torchvision, basic': lambda: ResNet(BasicBlock, [1, 2, 1, 1], num_classes=CLASSES),
  'torchvision, bottlenecks': lambda: ResNet(Bottleneck, ONES, num_classes=CLASSES),
  'torchvision, small stem': small_stem,
  'timm, basic': lambda: timm.create_model('resnet18', layers=ONES, num_classes=CLASSES),
  'timm, no head': lambda: timm.create_model('resnet50', layers=ONES, num_classes=0),
}
EXPORTED = [name for name in PEERS if name != 'torchvision, small stem']


def noisy(model):
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
      if name.endswith('running_mean'):
        buffer += 0.1 * torch.randn(buffer.shape, generator=generator)
      elif name.endswith('running_var'):
        buffer *= 0.5 + torch.rand(buffer.shape, generator=generator)
      else:
        buffer += 7  # batches
  return model.eval()


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A function from a name of `PEERS` to the model and its file, or its folder."""
  made = {}

  def get(name):
    if name not in made:
      model, path = noisy(PEERS[name]()), tmp_path_factory.mktemp('peer')
      if name.startswith('timm'):
        hub.save_for_hf(model, path, safe_serialization=True, data_config=dict(mean=MEAN, std=STD))
      else:
        path = path / 'a.pth'
        torch.save(model.state_dict(), path)
      made[name] = model, path
    return made[name]

  return get


def open_(path, **kwargs):
  return load(path, progress=False, mean=MEAN, std=STD, **kwargs)


def images(height, width):
  return np.random.default_rng(1).integers(0, 256, (2, height, width, 3), np.uint8)


@torch.no_grad()
def peer(model, image):
  """Its logits, or pooled features, and what each stage gives, `[B, h, w, D]`."""
  outputs = []
  hooks = [
    getattr(model, f'layer{i}').register_forward_hook(lambda _, __, out: outputs.append(out))
    for i in range(1, 5)
  ]
  x = ((image / 255 - MEAN) / STD).astype(np.float32)
  out = model(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
  for hook in hooks:
    hook.remove()
  return out.numpy(), [stage.numpy().transpose(0, 2, 3, 1) for stage in outputs]


def errors(model, theirs, image):
  """Relative errors of the result and of the stages."""
  expected, their_stages = peer(theirs, image)
  x = ((image / 255 - MEAN) / STD).astype(np.float32)
  collections = {name: tree['encoder'] for name, tree in model.variables.items()}
  encoder = model.objective.encoder
  stages = jax.jit(lambda v, x: encoder.apply(v, x, train=False).stages)(collections, x)
  pairs = zip([model(image, preprocessed=True), *stages], [expected, *their_stages], strict=True)
  return [np.abs(mine - other).max() / np.abs(other).max() for mine, other in pairs]


def export(model, folder):
  model.save(folder, 'timm')
  return dict(open_tensors(folder / 'model.safetensors'))


def described(architecture, files=None):
  """What a model of timm is here, without weights; by default with its 'config.json'."""
  model = timm.create_model(architecture, device='meta')
  shapes = {name: (tuple(x.shape), np.dtype('float32')) for name, x in model.state_dict().items()}
  files = {'config.json': {'architecture': architecture}} if files is None else files
  tensors = Tensors('a.safetensors', shapes, lambda name: np.zeros(shapes[name][0], np.float32))
  assert ours.matches(tensors)
  return ours.describe(tensors, Facts({}), files)


# -- In.


@pytest.mark.parametrize('name', PEERS)
def test_numbers_are_those_of_the_peer(saved, name):
  theirs, path = saved(name)
  model = open_(path)
  assert not (model.report.missing or model.report.unused)
  found = errors(model, theirs, images(48, 80))
  assert max(found) < 1e-4, found


@pytest.mark.slow
@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'resnet152'])
def test_published_sizes(tmp_path, name):
  theirs = noisy(getattr(torchvision.models, name)())
  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  found = errors(open_(tmp_path / 'a.pth'), theirs, images(224, 224))
  assert max(found) < 1e-4, found


@pytest.mark.parametrize('variant', VARIANTS)
def test_published_sizes_are_known_by_their_blocks(variant):
  layout = described(f'resnet{variant}')
  assert layout.encoder == {'type': 'models.resnet.ResNet', 'variant': variant}
  names = set(timm.create_model(f'resnet{variant}', device='meta').state_dict())
  assert {name for rule in layout.rules for name in rule.theirs} == names


def test_the_count_of_batches_may_be_missing(saved, tmp_path):
  theirs, path = saved('torchvision, basic')
  state = {k: x for k, x in theirs.state_dict().items() if not k.endswith('num_batches_tracked')}
  torch.save(state, tmp_path / 'b.pth')
  one, other = named(open_(path).variables), named(open_(tmp_path / 'b.pth').variables)
  assert one.keys() == other.keys()
  for name, array in one.items():
    np.testing.assert_array_equal(array, other[name])


def test_without_config_json_images_are_not_normalised_by_a_guess(saved):
  model = load(saved('torchvision, basic')[1], progress=False)
  with pytest.raises(ValueError, match='nobody says by which mean images are normalised'):
    model(images(48, 48))


def test_images_go_through_what_was_tested():
  # As timm has torchvision's second weights: trained on smaller images than evaluated.
  config = dict(
    input_size=[3, 176, 176], test_input_size=[3, 224, 224], crop_pct=0.875, test_crop_pct=0.965,
    interpolation='bilinear', mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225],
  )  # fmt: skip
  files = {'config.json': {'architecture': 'resnet18', 'pretrained_cfg': config}}
  layout = described('resnet18', files)
  assert layout.preprocessing.host == 'decode(channels=3) | resize_small(232) | central_crop(224)'
  assert layout.objective['mean'] == (0.485, 0.456, 0.406)
  older = {'config.json': {'architecture': 'resnet18', **config}}
  assert described('resnet18', older).preprocessing == layout.preprocessing


# -- Refused.


@pytest.mark.parametrize(
  ('name', 'match'),
  [
    ('resnet18d', r"'conv1.0.weight' \(a stem of several convolutions\)"),
    ('resnet50s', r"'conv1.0.weight' \(a stem of several convolutions\)"),
    ('seresnet18', r"'layer1.0.se.fc1.weight' \(squeeze and excitation\)"),
    ('wide_resnet50_2', r"'layer1.0.conv2.weight' in .* goes from 128 to 128 .* should have 64"),
    ('resnext50_32x4d', r"'layer1.0.conv2.weight' in .* goes from 4 to 128 .* should have 64"),
    ('resnetblur18', "config.json has architecture 'resnetblur18', which no model here has"),
    ('resnet50_gn', "has no 'bn1.running_mean', which its format has"),
  ],
)
def test_another_architecture_is_refused(name, match):
  with pytest.raises(ValueError, match=match):
    described(name)


def test_a_pooling_before_projections_is_refused(tmp_path):
  theirs = timm.create_model('resnet18', layers=ONES, avg_down=True, num_classes=CLASSES)
  torch.save(theirs.state_dict(), tmp_path / 'a.pth')
  with pytest.raises(ValueError, match=r"'layer2.0.downsample.[12].\w+' \(an average pooling"):
    load(tmp_path / 'a.pth', progress=False)


@pytest.mark.parametrize(
  ('args', 'match'),
  [
    (dict(act_layer='silu'), "act_layer 'silu'"),
    (dict(output_stride=16), 'output_stride 16'),
    (dict(global_pool='max'), "global_pool 'max'"),
  ],
)
def test_arguments_that_no_model_here_has_are_refused(args, match):
  with pytest.raises(ValueError, match=match):
    described('resnet18', {'config.json': {'architecture': 'resnet18', 'model_args': args}})


# -- Out.


@pytest.mark.parametrize('name', EXPORTED)
def test_peers_open_what_is_written_and_give_their_own_numbers(saved, tmp_path, name):
  theirs, path = saved(name)
  model = open_(path)
  export(model, tmp_path / 'out')
  again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).eval()
  image = images(48, 80)
  expected, stages = peer(theirs, image)
  out, again_stages = peer(again, image)
  for mine, other in zip([out, *again_stages], [expected, *stages], strict=True):
    np.testing.assert_allclose(mine, other, rtol=1e-5, atol=1e-5)
  data = timm.data.resolve_data_config(model=again)
  assert (tuple(data['mean']), tuple(data['std'])) == (MEAN, STD)
  if name.startswith('torchvision'):
    state = {
      k: torch.tensor(x) for k, x in open_tensors(tmp_path / 'out/model.safetensors').items()
    }
    PEERS[name]().load_state_dict(state, strict=True)


@pytest.mark.parametrize('name', EXPORTED)
def test_export_gives_the_file_back(saved, tmp_path, name):
  theirs, path = saved(name)
  arrays = export(open_(path), tmp_path / 'out')
  state = theirs.state_dict()
  assert set(arrays) == set(state)
  for key, array in arrays.items():
    if key.endswith('num_batches_tracked'):
      assert (array.dtype, array.shape, int(array)) == (np.int64, (), 0)
    else:
      np.testing.assert_array_equal(array, state[key].numpy())


def test_what_is_written_is_read_again(saved, tmp_path):
  model = open_(saved('torchvision, bottlenecks')[1])
  export(model, tmp_path / 'out')
  again = load(tmp_path / 'out', progress=False)
  assert again.spec == model.spec
  assert again.preprocessing == model.preprocessing


@pytest.mark.parametrize(
  ('fields', 'match'),
  [
    (dict(width=128), 'no place for width=128; it takes 64'),
    (dict(small_stem=True), 'no place for small_stem=True; it takes False'),
    (dict(blocks=(1, 1, 1)), r'no place for stages of \(1, 1, 1\) blocks; it takes four'),
  ],
)
def test_what_timm_has_no_place_for_is_refused(saved, fields, match):
  encoder = open_(saved('torchvision, basic')[1]).objective.encoder
  with pytest.raises(ValueError, match=match):
    ours.export_rules(encoder.clone(**fields), CLASSES)


def test_timm_takes_no_other_encoder():
  with pytest.raises(ValueError, match='timm takes a ViT or a ResNet, not Dense'):
    ours.export_rules(nn.Dense(3), CLASSES)
