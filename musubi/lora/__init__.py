"""LoRA: adapters attached from outside, the forms of their files, merging and inspecting them."""
