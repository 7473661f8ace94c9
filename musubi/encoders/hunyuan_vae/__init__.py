"""HunyuanVideo's video autoencoder."""
