"""Abu-Hussein & Giryes 2024 (arXiv 2305.16269): upsampling diffusion, UDPM."""
