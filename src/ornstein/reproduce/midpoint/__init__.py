"""Li & Jiao 2024 (arXiv 2410.13738): the randomized midpoint method."""
