"""Whole runs as YAML.

Never here: code.
"""
