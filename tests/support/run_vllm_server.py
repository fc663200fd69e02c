"""Runs vLLM's server with the options given, and ends when standard input closes.

Run with the python of the test environment, as the leader of a group of processes: vLLM starts
others, which have to end with the test run that started it too, however that ends.
"""

import os
import runpy
import signal
import sys
import threading


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # As a module by its name, because vLLM's other processes import the same main module.
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
