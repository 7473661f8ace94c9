"""CLIP's image tower (ViT-H/14 of open_clip's XLM-RoBERTa model): pictures to image features."""
