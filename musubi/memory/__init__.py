"""Memory policies: where weights and activations are kept. They are applied to a module from
outside.

Policies are applied in one order, each knowing only the module and its declared traits: storage,
adapters, residency, recompute, activations, compile. None of them renames anything.
"""
