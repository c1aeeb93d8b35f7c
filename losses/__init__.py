"""The zoo: one loss a file; the folder is the registry."""
