"""The engine for servers that speak the OpenAI protocol."""

from conviction.engines.openai.engine import OpenAIEngine
from conviction.engines.openai.facts import Route
from conviction.engines.openai.http import Timeouts

__all__ = ["OpenAIEngine", "Route", "Timeouts"]
