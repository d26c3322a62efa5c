"""Dao et al. 2025 (arXiv 2502.01441): latent consistency models, sLCT."""
