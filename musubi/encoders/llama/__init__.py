"""LLaVA-Llama3, the language model whose hidden states HunyuanVideo reads."""
