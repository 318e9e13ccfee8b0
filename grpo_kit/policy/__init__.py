"""The policy: model and tokenizer loaded, the chat template, generation."""
