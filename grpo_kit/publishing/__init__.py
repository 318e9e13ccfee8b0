"""A run's result for others: its adapter on the Hugging Face Hub, and files for llama.cpp and Ollama."""
