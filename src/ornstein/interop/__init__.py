"""Other people's models as denoisers. Nothing here is imported before it is used.

from ornstein.interop.diffusers import from_pipeline

piped = from_pipeline("stabilityai/stable-diffusion-xl-base-1.0", device="cuda", dtype=torch.float16)
"""
