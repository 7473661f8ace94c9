"""SigLIP's vision tower: pictures to 729 tokens of 1152 numbers."""
