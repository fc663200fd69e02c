"""Runs pytest inside of vLLM's test environment, on tests that import torch and vLLM.

Arguments: the folder that pytest and hypothesis are imported from, then pytest's own. That
environment does not have them; both are of the same version of Python, so it borrows them, behind
everything of its own.
"""

import os
import sys

_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}

if __name__ == "__main__":
    lent, *arguments = sys.argv[1:]
    os.environ.update(_SETTINGS)
    sys.path.append(lent)
    import pytest

    sys.exit(pytest.main(["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir=.", *arguments]))
