"""Networks that stand around a denoiser and are shared by architectures: one folder each."""
