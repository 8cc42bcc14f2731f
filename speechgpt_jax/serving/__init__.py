"""Serving: OpenAI's API and a page over a model that listens and speaks."""
