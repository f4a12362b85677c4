"""The published sizes of Vision Transformers, and how their names are read."""

from collections.abc import Mapping
from typing import NamedTuple

from vit_jax.choices import check_choice


class Size(NamedTuple):
  """The shape of a transformer."""

  width: int
  depth: int
  mlp_dim: int
  num_heads: int


# B, L, H: Table 1, arXiv:2010.11929. Ti, S, g, G: Table 2, arXiv:2106.04560.
VARIANTS = {
  'Ti': Size(192, 12, 768, 3),
  'S': Size(384, 12, 1536, 6),
  'B': Size(768, 12, 3072, 12),
  'L': Size(1024, 24, 4096, 16),
  'H': Size(1280, 32, 5120, 16),
  'g': Size(1408, 40, 6144, 16),
  'G': Size(1664, 48, 8192, 16),
}

# Mean and standard deviation of the images that CLIP was trained on, by channel, of pixels in
# [0, 1]. Its published code, arXiv:2103.00020.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def size_of(variant: str, fields: Mapping[str, int | None]) -> Size:
  """The size of a variant such as `B/16` or `R50+B/16`, with what overrides it.

  Args:
    variant: its name; '' for none.
    fields: by the names of `Size`; None leaves the variant's.

  Raises:
    ValueError: an unknown variant, a field that neither gives, or one below 1.
  """
  name = variant.partition('/')[0].rpartition('+')[2]
  known = VARIANTS[check_choice('variant', name, VARIANTS)]._asdict() if name else {}
  values = {f: known.get(f) if fields[f] is None else fields[f] for f in Size._fields}
  missing = [field for field, value in values.items() if value is None]
  if missing:
    choices = ', '.join(map(repr, VARIANTS))
    raise ValueError(f'without a variant ({choices}) ViT needs {", ".join(missing)}')
  if min(values.values()) < 1:
    raise ValueError(f'ViT needs sizes of at least 1, got {values}')
  return Size(**values)


def patch_of(variant: str, patch_size: int | tuple[int, int] | None) -> tuple[int, int]:
  """Height and width of a patch in pixels: those stated, or the variant's.

  Raises:
    ValueError: neither says it, or it is below 1.
  """
  patch = patch_size
  if patch is None:
    text = variant.partition('/')[2]
    if not text.isdecimal():
      raise ValueError(f"no patch size in {variant!r}: write 'B/16', or set patch_size")
    patch = int(text)
  patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
  if min(patch) < 1:
    raise ValueError(f'patch_size must be at least 1, got {patch_size}')
  return patch
