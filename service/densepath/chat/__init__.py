"""Chat messages: checked, and rendered by the chat template of the tokenizer."""
