"""`musubi cache caption`: captions for clips and pictures, written by a vision-language model."""
