"""An et al. 2024 (arXiv 2401.02414): a metric function in diffusion, Cas-DM."""
