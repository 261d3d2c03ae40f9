"""Responses sampled from a policy, by vLLM or by transformers."""
