"""The plugin for vLLM, tested where torch and vLLM are: every file of `inside_vllm`."""

import os
import subprocess
from pathlib import Path

import pytest
import vllm_environment
import vllm_models
from plugin_path import package_path
from triton_environment import triton_folder

_HERE = Path(__file__).parent
_INSIDE = sorted((_HERE / "inside_vllm").glob("test_*.py"))


@pytest.mark.servers
@pytest.mark.timeout(300)
@pytest.mark.parametrize("file", _INSIDE, ids=[file.stem for file in _INSIDE])
def test_inside(file: Path, tmp_path: Path) -> None:
    if reason := vllm_environment.unavailable_because():
        pytest.skip(reason)
    models = vllm_models.model_folder(vllm_models.TINY).parent
    path, settings = package_path(tmp_path / "package"), {}
    if file.stem.startswith("test_kernel"):
        path = f"{path}:{triton_folder()}"
        settings["TRITON_CACHE_DIR"] = str(tmp_path / "compiled")
    if file.stem == "test_kernel":
        settings["TRITON_INTERPRET"] = "1"
    ran = subprocess.run(
        [
            *(vllm_environment.vllm_python(), _HERE / "support" / "pytest_in_vllm.py"),
            *(Path(pytest.__file__).parents[1], file, "-q", "-ra"),
        ],
        env={
            **os.environ,
            **settings,
            "PYTHONPATH": path,
            "CONVICTION_TEST_MODELS": str(models),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-3000:]
