"""The engine for servers that speak the OpenAI protocol."""

from conviction.engines.openai.engine import OpenAIEngine
from conviction.engines.openai.http import Timeouts
from conviction.engines.openai.requests import Route

__all__ = ["OpenAIEngine", "Route", "Timeouts"]
