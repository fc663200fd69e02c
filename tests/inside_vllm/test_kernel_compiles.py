"""The kernels compile for the GPUs that vLLM runs on; no GPU is needed for that."""

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from conviction_gate import kernel

_PARTS = {
    "logits": "*{dtype}",
    "stride": "i64",
    "step": "i32",
    "vocabulary": "i32",
    "ks": "*i64",
    "sums": "*fp32",
    "largest": "*fp32",
    "parts": "i32",
}
_JOIN = {
    "sums": "*fp32",
    "largest": "*fp32",
    "ks": "*i64",
    "vocabulary": "i32",
    "confidences": "*fp32",
    "parts": "i32",
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_compiles(capability: int, dtype: str) -> None:
    target = GPUTarget("cuda", capability, 32)
    signature = {name: kind.format(dtype=dtype) for name, kind in _PARTS.items()}
    looked = triton.compile(
        ASTSource(
            kernel._look_at_parts,
            signature | {"KEPT": "constexpr", "PART": "constexpr"},
            {"KEPT": 32, "PART": 4096},
        ),
        target=target,
        options={"num_warps": 8},
    )
    joined = triton.compile(
        ASTSource(
            kernel._join_parts,
            _JOIN | {"KEPT": "constexpr", "PARTS": "constexpr"},
            {"KEPT": 32, "PARTS": 64},
        ),
        target=target,
        options={"num_warps": 4},
    )
    for compiled in (looked, joined):
        assert compiled.asm["ptx"]
        # Memory of the block, not of single threads: what spills would be read from far away.
        assert ".local" not in compiled.asm["ptx"]
