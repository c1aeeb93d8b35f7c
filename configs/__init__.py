"""Whole runs as YAML."""
