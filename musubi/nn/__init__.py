"""What every network shares: attention, rotary positions, norms, causal convolution, tiling."""
