"""The kernels by `Row.built_as`: importing this needs a Triton whose Gluon has all that they use."""

from fusedformer.kernels.attention.hopper.bwd_kernel import attention_hopper_bwd_kernel
from fusedformer.kernels.attention.hopper.dkdv_wide_kernel import attention_hopper_dkdv_wide_kernel
from fusedformer.kernels.attention.hopper.dq_kernel import attention_hopper_dq_kernel
from fusedformer.kernels.attention.hopper.fwd_fp8_kernel import attention_hopper_fwd_fp8_kernel
from fusedformer.kernels.attention.hopper.fwd_kernel import attention_hopper_fwd_kernel
from fusedformer.kernels.attention.hopper.fwd_persistent_kernel import attention_hopper_fwd_persistent_kernel

KERNELS = {
    "fwd": attention_hopper_fwd_kernel,
    "fwd_persistent": attention_hopper_fwd_persistent_kernel,
    "fwd_fp8": attention_hopper_fwd_fp8_kernel,
    "dq": attention_hopper_dq_kernel,
    "dkdv": attention_hopper_bwd_kernel,
    "dkdv_wide": attention_hopper_dkdv_wide_kernel,
    "fused": attention_hopper_bwd_kernel,
}
