"""Routes in the forms of other servers: OpenAI, vLLM, SGLang and OpenRLHF."""
