"""The models that vLLM serves in tests, as folders in the format that it reads."""

from hashlib import sha256
from pathlib import Path

from kept_folders import kept_folder, run_to_the_end
from vllm_environment import vllm_python

from conviction.models import resolve

REAL = "SmolLM2-135M-Instruct"
"""A small model that answers, if not well; llama.cpp's server has it in tests too.

On two cores vLLM writes about 40 tokens/s in one stream, and 200 in eight.
"""

TINY = "tiny"
"""Two random layers with the same tokenizer: writes nonsense, about 370 tokens/s a stream."""

_PROGRAM = Path(__file__).with_name("write_model_folders.py")


def model_folder(name: str) -> Path:
    """The folder of the model `REAL` or `TINY`, written first where that was not done yet.

    Raises:
        PreparationError: it cannot be written.
        DownloadError: the file that it is made from cannot be fetched.
    """
    source = resolve(REAL)
    fingerprint = f"{source.sha256} {sha256(_PROGRAM.read_bytes()).hexdigest()}"

    def make(folder: Path) -> None:
        run_to_the_end(
            [vllm_python(), _PROGRAM, source.path, folder],
            "Writing models for vLLM (0.5 GB, once)",
            seconds=600.0,
        )

    return kept_folder("models", fingerprint, make) / name
