"""Podell et al. 2023, SDXL: what of the paper can be tested without its weights."""
