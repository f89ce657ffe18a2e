"""Meters know tensors and devices, and no recipes."""
