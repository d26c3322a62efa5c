"""Um, Lee & Ye 2024 (arXiv 2301.12334): minority guidance."""
