"""Ornstein: recent advances in diffusion models as parts that work on any denoiser, and compose."""
