"""Pretrained weights: from PyTorch files into this model and back, and into a fresh training state."""
