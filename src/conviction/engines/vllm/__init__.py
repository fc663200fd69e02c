"""The engine that runs vLLM inside this program."""

from conviction.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
