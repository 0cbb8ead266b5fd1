"""What needs several makers at once: parity, quality per quantisation, smoke tests."""
