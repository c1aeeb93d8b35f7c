"""Rows on disk to tensors."""
