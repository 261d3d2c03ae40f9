"""Arithmetic on arrays, without I/O: rewards, returns, advantages, shaping."""
