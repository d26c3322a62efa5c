"""The eleven methods: one short description a paper. Nothing here claims more than what runs today."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ready", "parts", "planned"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paper:
    """One paper: what it does, what of it runs here, and the command that runs it."""

    name: str
    title: str
    arxiv: str
    what: str
    state: State
    here: str
    command: str = ""


PAPERS: tuple[Paper, ...] = (
    Paper(
        name="sdxl",
        title="SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis",
        arxiv="2307.01952",
        what="latent text-to-image with size and crop conditioning and a refiner",
        state="parts",
        here="sampling with published weights, base and refiner, from folders or one file, every sampler, guidance "
        "and modulation: all its conditions, prompts of any length, LoRA, inpainting; no training yet; claims "
        "that need no weights measured by `ornstein reproduce sdxl`",
    ),
    Paper(
        name="slct",
        title="Improved Training Technique for Latent Consistency Models",
        arxiv="2502.01441",
        what="consistency training in latent space: images in one or two evaluations",
        state="ready",
        here="training with every part switchable, iCT, CM and ECT as presets, one to any number of evaluations, a "
        "search for the middle levels; claims measured by `ornstein reproduce slct`",
        command="ornstein train slct --data critters --size 32 --out runs/slct",
    ),
    Paper(
        name="udpm",
        title="UDPM: Upsampling Diffusion Probabilistic Models",
        arxiv="2305.16269",
        what="the state halves its resolution with every level: images in three cheap evaluations",
        state="ready",
        here="training with perceptual and adversarial losses, three evaluations, interpolation, any kernel, a reader "
        "for the authors' checkpoints; claims measured by `ornstein reproduce udpm`",
        command="ornstein train udpm --data critters --size 32 --out runs/udpm",
    ),
    Paper(
        name="universal-guidance",
        title="Universal Guidance for Diffusion Models",
        arxiv="2302.07121",
        what="steer any denoiser with any differentiable function of the clean image",
        state="ready",
        here="forward, backward, recurrence, the covariance-corrected strength, a dozen guides by name from three "
        "sources of networks (`ornstein guides`); claims measured by `ornstein reproduce universal-guidance`",
        command="ornstein sample critters --guide colour:#7dd3fc --steps 30",
    ),
    Paper(
        name="minority-guidance",
        title="Don't Play Favorites: Minority Guidance for Diffusion Models",
        arxiv="2301.12334",
        what="steer sampling towards rare samples",
        state="ready",
        here="scores, classes, the noise-conditioned classifier, guidance toward any class of rarity, and three "
        "successors; claims measured by `ornstein reproduce minority-guidance`",
        command="ornstein score critters --data critters --out scores.csv",
    ),
    Paper(
        name="contextdiff",
        title="Cross-Modal Contextualized Diffusion Models for Text-Guided Visual Generation and Editing",
        arxiv="2402.16627",
        what="the forward process itself depends on the text and image pair",
        state="parts",
        here="its path, sampled by `ancestral` and `ddim`, biased and unbiased; no adapter training yet",
    ),
    Paper(
        name="cas-dm",
        title="Bring Metric Functions into Diffusion Models",
        arxiv="2401.02414",
        what="a cascade of two networks that lets perceptual losses help diffusion training",
        state="ready",
        here="joint and two-phase training, both gate losses, map and scalar gates, perceptual losses, any sampler; "
        "claims measured by `ornstein reproduce cas-dm`",
        command="ornstein train cas-dm --data critters --out runs/cascade",
    ),
    Paper(
        name="dmfft",
        title="DMFFT: improving the generation quality of diffusion models using fast Fourier transform",
        arxiv="",  # Scientific Reports 15 (2025)
        what="change the frequencies of U-Net features at sampling time, without training",
        state="parts",
        here="named feature sites and `modulated()` for any function on them; no frequency preset yet",
    ),
    Paper(
        name="accelerated-ode",
        title="Accelerating Convergence of Score-Based Diffusion Models, Provably",
        arxiv="2403.03852",
        what="a deterministic sampler of second order with a proof, and a stochastic one beside DDPM",
        state="ready",
        here="`accelerated-ode` (the paper's probe), `-history` and `-memory` (the practical form), `accelerated-sde`; "
        "claims measured by `ornstein reproduce accelerated-ode accelerated-sde`",
        command="ornstein sample critters --sampler accelerated-ode-memory --evaluations 10",
    ),
    Paper(
        name="randomized-midpoint",
        title="Improved Convergence Rate for Diffusion Probabilistic Models",
        arxiv="2410.13738",
        what="a sampler that evaluates at random times for a better dependence on dimension",
        state="ready",
        here="`randomized-midpoint` with rounds as a climbing grid (`grids.rounds`), its parallel form "
        "(`samplers.picard`) and its deterministic twin `staggered-midpoint`; claims measured by "
        "`ornstein reproduce randomized-midpoint`",
        command="ornstein sample critters --sampler staggered-midpoint --evaluations 10",
    ),
    Paper(
        name="exponential-integrator",
        title="Unified Convergence Analysis for Score-Based Diffusion Models with Deterministic Samplers",
        arxiv="2410.14237",
        what="exponential integrators of the reverse process with schedules, proofs and an error certificate",
        state="ready",
        here="the paper's scheme and early stopping (`exponential-integrator`, `grids.early_stopping`), its "
        "certificate (`ornstein.lab.certificates`), and the one-step, multistep and SDE family (`dpmpp-*`, `unipc`, "
        "`deis-*`, `sa-solver`); claims measured by `ornstein reproduce exponential-integrator`",
        command="ornstein sample critters --sampler exponential-integrator --evaluations 20",
    ),
)
