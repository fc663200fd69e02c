"""The stop rule of `conviction` inside vLLM: a plugin that loads by being installed.

It imports nothing but the standard library, torch and vLLM, so that vLLM's start and its
environment bear nothing else. `names` and `channel` need neither torch nor vLLM: the clients use
them, too.
"""
