# shellcheck shell=bash
# `source launch/xla_flags.sh`: compiler flags that are known to be good for this machine's accelerator.
#
# XLA ends a process at the first flag that it does not know, so each stands only where it belongs: JAX_PLATFORMS
# says where that is, else the device files do. On CPUs nothing is set. What LIBTPU_INIT_ARGS and XLA_FLAGS hold
# already comes last and so decides: of a flag that stands twice the last one counts.
#
# None of them changes what is computed. --xla_tpu_spmd_rng_bit_generator_unsafe, which is often seen beside them,
# is left out because it does: dropout would depend on the mesh.

vit_jax_platform() {
  if [[ -n "${JAX_PLATFORMS:-}" ]]; then
    echo "${JAX_PLATFORMS%%,*}"
  elif compgen -G '/dev/nvidia[0-9]*' >/dev/null; then
    echo cuda
  elif compgen -G '/dev/accel[0-9]*' >/dev/null || compgen -G '/dev/vfio/[0-9]*' >/dev/null; then
    echo tpu
  else
    echo cpu
  fi
}

vit_jax_tpu_flags() {
  local flags=(
    # Collectives run beside the computation that does not need them: all-gathers of FSDP beside matrix products.
    # The list "TPU XLA flags" of docs.jax.dev/en/latest/xla_flags.html explains each; MaxText's
    # benchmarks/xla_flags_library.py has them as CF_FOR_ALL_GATHER.
    --xla_enable_async_all_gather=true
    --xla_tpu_enable_async_collective_fusion=true
    --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
    --xla_tpu_enable_async_collective_fusion_multiple_steps=true
    --xla_tpu_overlap_compute_collective_tc=true
    # Several slices: gradients go over the data centre's network while the next layer's are computed.
    # DATA_PARALLEL_OVERLAP in the same file; on one slice they find nothing to do.
    --xla_tpu_enable_data_parallel_all_reduce_opt=true
    --xla_tpu_data_parallel_opt_different_sized_ops=true
  )
  echo "${flags[*]}"
}

vit_jax_gpu_flags() {
  local flags=(
    # Orders the program so that collectives run beside computation: the one flag in NVIDIA's own containers,
    # docs.nvidia.com/jax-toolbox/environment-variables.
    --xla_gpu_enable_latency_hiding_scheduler=true
    # Small collectives are put together up to this size. At least the weights of one block, says
    # docs.nvidia.com/jax-toolbox/performance-profiling/gpu-performance; ViT-H's are 79 MB in float32. Larger ones
    # would leave less to overlap.
    --xla_gpu_all_gather_combine_threshold_bytes=134217728
    --xla_gpu_reduce_scatter_combine_threshold_bytes=134217728
    --xla_gpu_all_reduce_combine_threshold_bytes=134217728
  )
  echo "${flags[*]}"
}

case "$(vit_jax_platform)" in
  tpu)
    # libtpu has a variable of its own: the rest of XLA does not know these.
    LIBTPU_INIT_ARGS="$(vit_jax_tpu_flags) ${LIBTPU_INIT_ARGS:-}"
    export LIBTPU_INIT_ARGS
    ;;
  cuda | gpu)
    XLA_FLAGS="$(vit_jax_gpu_flags) ${XLA_FLAGS:-}"
    export XLA_FLAGS
    ;;
esac
