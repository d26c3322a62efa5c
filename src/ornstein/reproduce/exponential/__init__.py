"""Li, Di & Gu 2025 (arXiv 2410.14237): exponential integrators with early stopping."""
