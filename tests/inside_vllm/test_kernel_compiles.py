"""The kernels compile for the GPUs that vLLM runs on; no GPU is needed for that."""

from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from conviction_gate import kernel

_READ = {"logits": "*{dtype}", "stride": "i64", "step": "i32", "vocabulary": "i32"}
_LOOK = {**_READ, "sums": "*fp32", "peaks": "*fp32", "parts": "i32"}
_MEASURE = {
    **_READ,
    "ks": "*i64",
    "sums": "*fp32",
    "peaks": "*fp32",
    "confidences": "*fp32",
    "parts": "i32",
}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_compiles(capability: int, dtype: str) -> None:
    target = GPUTarget("cuda", capability, 32)
    looked = _compiled(kernel._look_at_parts, _LOOK, dtype, target, PART=4096, BLOCK=64)
    # As for a vocabulary of 151,936 and the 20 largest.
    measured = _compiled(
        kernel._measure_rows,
        _MEASURE,
        dtype,
        target,
        KEPT=32,
        PARTS=64,
        PEAKS=4096,
        PART=4096,
        BLOCK=64,
    )
    for compiled in (looked, measured):
        assert compiled.asm["ptx"]
        # Memory of the block, not of single threads: what spills would be read from far away.
        assert ".local" not in compiled.asm["ptx"]


def _compiled(
    function: Any, signature: dict[str, str], dtype: str, target: GPUTarget, **constants: int
) -> Any:
    kinds = {name: kind.format(dtype=dtype) for name, kind in signature.items()}
    source = ASTSource(function, kinds | dict.fromkeys(constants, "constexpr"), constants)
    return triton.compile(source, target=target, options={"num_warps": 4})
