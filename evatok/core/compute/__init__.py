"""What a computation runs on: devices, precision, seeds, optional kernels."""
