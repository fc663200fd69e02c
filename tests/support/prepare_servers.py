"""Makes all that `pytest --servers` keeps in the cache, so that it can be made beside other things.

    python tests/support/prepare_servers.py

It ends what it started when it is told to end.
"""

import signal
import sys

from inspect_environment import inspect_python
from triton_environment import triton_folder
from vllm_environment import unavailable_because, vllm_python
from vllm_models import TINY, model_folder

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Told to end."))
    if unavailable_because() is None:
        vllm_python()
        model_folder(TINY)
        triton_folder()
    inspect_python()
