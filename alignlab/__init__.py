"""Preference alignment of language models: any loss, any speed-up, any scale, with proof."""
