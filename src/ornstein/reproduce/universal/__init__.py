"""Bansal et al. 2024 (arXiv 2302.07121): universal guidance."""
