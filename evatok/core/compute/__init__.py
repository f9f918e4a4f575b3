"""Devices, precision, seeds, optional kernels."""
