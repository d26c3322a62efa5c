"""Li, Huang, Efimov, Wei, Chi & Chen 2024 (arXiv 2403.03852): provably accelerated samplers."""
