"""A result as files for llama.cpp and Ollama: the adapter as a GGUF, or the merged model."""
