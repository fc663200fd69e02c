"""The program that runs llama.cpp's server in a process of its own.

Run as a script: it takes its settings as one line of JSON on standard input, says where it
listens as one line of JSON on standard output, and ends when standard input closes. So it ends
with its parent, however the parent ends. It imports nothing of this package, to start quickly.
"""

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, TextIO

_ERRORS_ONLY = 1
_STDIN, _STDOUT, _STDERR = 0, 1, 2


def main() -> None:
    """Serve until standard input closes."""
    # Ctrl-C reaches the whole group of processes; how a run ends is for the parent to decide.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Standard output is for ours alone: what native code prints goes to standard error.
    report = os.fdopen(os.dup(_STDOUT), "w", encoding="utf-8")
    os.dup2(_STDERR, _STDOUT)
    settings = json.loads(sys.stdin.readline())
    try:
        server = _serve(settings)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent must hear of it
        _say(report, {"error": str(error)})
        sys.exit(1)
    # The parent may have ended while the model was loading; then nobody hears this.
    with suppress(OSError):
        _say(report, {"url": server.listening_address})
        while os.read(_STDIN, 4096):
            pass
    shutil.rmtree(settings["folder"], ignore_errors=True)
    # Without the destructors of native code: there is nothing left to save.
    os._exit(0)


def _say(report: TextIO, message: dict[str, str]) -> None:
    report.write(json.dumps(message) + "\n")
    report.flush()


def _serve(settings: dict[str, Any]) -> Any:
    # Here rather than above, so that a failure is reported. The package has no types.
    xllamacpp: Any = import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * settings["context"]
    params.cpuparams.n_threads = settings["threads"]
    params.cpuparams_batch.n_threads = settings["threads"]
    params.verbosity = _ERRORS_ONLY
    # One pool of context for all slots, exactly as asked for.
    params.kv_unified = True
    params.fit_params = False
    # Prompts are shared by saving and restoring slots, which the server's own caches disturb.
    params.slot_save_path = str(Path(settings["folder"])) + os.sep
    params.cache_idle_slots = False
    params.cache_ram_mib = 0
    # What the model writes is passed on as it is, thinking included.
    params.force_pure_content_parser = True
    # For us alone: a random port on loopback, a random key, no pages, no foreign origins.
    params.port = 0
    params.api_keys = [settings["api_key"]]
    params.ui = False
    params.cors_origins = ""
    params.cors_credentials = False
    params.endpoint_slots = True
    params.endpoint_metrics = True
    return xllamacpp.Server(params)


if __name__ == "__main__":
    main()
