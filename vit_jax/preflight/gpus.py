"""NVIDIA's GPUs by name, none of which need be there to compile for.

JAX's CUDA plugin compiles without a GPU, a driver or CUDA's libraries, from what it is told of one;
`attention='cudnn'` alone asks for cuDNN, which `jax[cuda13]` brings. It cannot try which kernel is
fastest, as it does on a GPU: temporaries are those of the kernels that it takes untried. `FLAGS`
leaves matrix products to cuBLAS, since Triton's tiles fit not all of them untried.
"""

from typing import TYPE_CHECKING, NamedTuple

from vit_jax.preflight.chips import CHIPS

if TYPE_CHECKING:
  import jax

FLAGS = '--xla_gpu_enable_triton_gemm=false'
HOST = 8  # GPUs of one machine


class Gpu(NamedTuple):
  """What XLA asks of a GPU that `Chip` does not say.

  Attributes:
    kind: what a device calls itself.
    capability: the first number of its compute capability, whose second is 0.
    cores: streaming multiprocessors, each of so many `units` of single precision.
    shared: KiB of shared memory a core, of which a block may take one less.
    cache: MiB of its L2 cache.
    clock: GHz at most.
  """

  kind: str
  capability: int
  cores: int
  units: int
  shared: int
  cache: int
  clock: float


# Of NVIDIA's architecture white papers, and the CUDA C++ Programming Guide's compute capabilities.
GPUS = {
  'a100-40gb': Gpu('NVIDIA A100-SXM4-40GB', 8, 108, 64, 164, 40, 1.41),
  'a100-80gb': Gpu('NVIDIA A100-SXM4-80GB', 8, 108, 64, 164, 40, 1.41),
  'h100': Gpu('NVIDIA H100 80GB HBM3', 9, 132, 128, 228, 50, 1.98),
  'h200': Gpu('NVIDIA H200', 9, 132, 128, 228, 50, 1.98),
}


def devices(name: str, count: int) -> 'list[jax.Device]':
  """`count` GPUs of a kind of `GPUS`, to compile for; `count` fills a machine, or full ones.

  Raises:
    ImportError: JAX's CUDA plugin is not installed.
  """
  import jax
  from jax.experimental import topologies

  try:
    import jax_plugins.xla_cuda13  # noqa: F401
  except ImportError:
    raise ImportError(
      f"GPUs that are not there need JAX's CUDA plugin: pip install "
      f'jax-cuda13-plugin=={jax.__version__} (it takes 0.4 GB, and neither a GPU nor CUDA)'
    ) from None
  hosts = -(-count // HOST)
  found = topologies.get_topology_desc(
    platform='cuda', target_config=_described(name), topology=f'1x{hosts}x{count // hosts}'
  )
  return list(found.devices)


def _described(name: str) -> str:
  """A GPU as XLA's `GpuTargetConfigProto`, in text."""
  gpu, chip = GPUS[name], CHIPS[name]
  return f"""
    platform_name: "CUDA" device_description_str: "{gpu.kind}"
    runtime_version {{ major: 13 }} dnn_version_info {{ major: 9 minor: 12 }}
    gpu_device_info {{
      cuda_compute_capability {{ major: {gpu.capability} }}
      core_count: {gpu.cores} fpus_per_core: {gpu.units} clock_rate_ghz: {gpu.clock}
      device_memory_size: {chip.memory} memory_bandwidth: {int(chip.bandwidth)}
      l2_cache_size: {gpu.cache << 20} shared_memory_per_core: {gpu.shared << 10}
      shared_memory_per_block: {48 << 10} shared_memory_per_block_optin: {gpu.shared - 1 << 10}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      threads_per_core_limit: 2048 threads_per_block_limit: 1024 threads_per_warp: 32
      block_dim_limit_x: {2**31 - 1} block_dim_limit_y: 65535 block_dim_limit_z: 65535
    }}
  """
