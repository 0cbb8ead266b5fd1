"""The exact trace: one step of the very recipe on tensors without storage, replayed through the allocator."""
