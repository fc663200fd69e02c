"""The server: OpenAI's protocol in front of many traces and a vote, and the live page."""
