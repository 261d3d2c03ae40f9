"""The HTTP side: bytes in, a batch of sequences to the engine, bytes out."""
