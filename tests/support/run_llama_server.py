"""The program of llama.cpp's server as an ordinary user starts it: MODEL NAME PORT SLOTS.

It runs in a group of processes of its own, and ends when standard input closes: with the test
run that started it, however that ends.
"""

import os
import sys
from importlib import import_module
from typing import Any


def main(model: str, name: str, port: int, slots: int) -> None:
    """Serve until standard input closes."""
    # Without types, and not there on every machine.
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {name}
    params.port = port
    # What `llama-server --metrics` has: a few slots over one pool as long as the model's context.
    params.n_parallel = slots
    params.kv_unified = True
    params.endpoint_metrics = True
    # Beside one busy process two threads write 2 tokens/s where one writes 80.
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(params)
    while os.read(sys.stdin.fileno(), 1):
        pass
    del server
    # Without the destructors of native code: there is nothing left to save.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
