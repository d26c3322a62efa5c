"""The demo's page: which panel shows what."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..page import Curve, Picture, Section, Table, chart, picture, render
from ..storage.reading import load_json, load_lines, parse_json
from .demo_args import EVALUATIONS, FINE, SAMPLERS, Cell, DemoArgs, live_command

if TYPE_CHECKING:
    from torch import Tensor

    from ..runs import TrainedModel

COLUMNS = 3


def page(
    args: DemoArgs,
    run: TrainedModel,
    cells: Sequence[Cell],
    pictures: dict[tuple[str, int], Tensor],
    fine: Tensor,
    opening: Sequence[Section],
    live: Path | None,
) -> str:
    """The whole page."""
    sections = [
        *opening,
        _samples(args, run, cells, pictures),
        _distances(args, cells),
        _seconds(args, cells),
        _fine(args, fine),
    ]
    if (measured := _measured()) is not None:
        sections.append(measured)
    if (training := _training(args, run, live)) is not None:
        sections.append(training)
    card = run.details.get("card", {})
    facts = [
        ("parameters", f"{run.parameters / 1e6:.2f} million"),
        ("trained on", f"{run.images:,} images"),
        ("resolution", f"{run.denoiser.shape[1]} × {run.denoiser.shape[2]}"),  # pyright: ignore[reportOptionalSubscript]
        *((key, str(value)) for key, value in card.items() if key == "data"),
    ]
    lead = (
        "Small diffusion models of DiceBear's critters (CC0), trained on a CPU. Every panel was computed on this "
        "machine just now unless it says otherwise, and names the command that repeats it."
    )
    return render("Critters, drawn from noise", lead, sections, facts)


def _sample_command(args: DemoArgs, sampler: str, evaluations: int | str) -> str:
    return (
        f"ornstein sample {args.model} --sampler {sampler} --evaluations {evaluations} --seed {args.seed} "
        f"--n {args.n} --out {args.out}/{sampler}-{evaluations}"
    )


def _samples(
    args: DemoArgs, run: TrainedModel, cells: Sequence[Cell], pictures: dict[tuple[str, int], Tensor]
) -> Section:
    del run, cells
    rows: list[list[str | Picture]] = []
    for name in SAMPLERS:
        row: list[str | Picture] = [name]
        for evaluations in EVALUATIONS:
            alt = f"{args.n} images by {name} with {evaluations} evaluations"
            row.append(picture(pictures[name, evaluations], alt, columns=COLUMNS))
        rows.append(row)
    commands = "\n".join(_sample_command(args, name, EVALUATIONS[1]) for name in SAMPLERS)
    return Section(
        title="The same noise under six samplers",
        text="Columns are network evaluations for one image. The last row, auto, chooses sampler and grid by their "
        "number. ddpm is ancestral sampling: it adds fresh noise at every step and arrives at other critters. The "
        "others solve the probability-flow ODE, so that a converged column shows the same ones. heun takes two "
        "evaluations a step: 5 and 10 are too few for it, and much of its first pictures is noise.",
        table=Table(head=["sampler", *(f"{n} evaluations" for n in EVALUATIONS)], rows=rows),
        command=commands,
    )


def _distances(args: DemoArgs, cells: Sequence[Cell]) -> Section:
    curves = [
        Curve(
            name=name,
            style=SAMPLERS.index(name),
            x=[cell.evaluations for cell in cells if cell.sampler == name],
            y=[cell.distance or float("nan") for cell in cells if cell.sampler == name],
        )
        for name in SAMPLERS
        if any(cell.sampler == name and cell.distance is not None for cell in cells)
    ]
    rows = [[curve.name, *(f"{value:.4f}" for value in curve.y)] for curve in curves]
    return Section(
        title="Distance to the model's own solution",
        text=f"Root mean square difference, in pixel units of [−1, 1], to the same noise solved with {FINE} "
        "evaluations of unipc-3. It measures the sampler alone, not the model.",
        charts=[
            (
                f"{args.n} images, seed {args.seed}",
                chart(
                    curves,
                    x="network evaluations",
                    y="RMS distance",
                    log_x=True,
                    log_y=True,
                    ticks=EVALUATIONS,
                ),
            )
        ],
        table=Table(head=["sampler", *(str(n) for n in EVALUATIONS)], rows=rows),
        command=f"ornstein demo --model {args.model} --seed {args.seed} --n {args.n} --images 0 --out {args.out}",
    )


def _seconds(args: DemoArgs, cells: Sequence[Cell]) -> Section:
    rows = [[name, *(f"{cell.seconds_per_image:.3f}" for cell in cells if cell.sampler == name)] for name in SAMPLERS]
    return Section(
        title="Seconds an image",
        text=f"Batches of {args.n} on this machine's CPU, by network evaluations; nearly all of it is the network.",
        table=Table(head=["sampler", *(str(n) for n in EVALUATIONS)], rows=rows),
        command=_sample_command(args, "dpmpp-2m", 20),
    )


def _fine(args: DemoArgs, fine: Tensor) -> Section:
    import torch

    from ..data import open_source

    source = open_source("critters", size=fine.shape[-1], limit=len(fine))
    real = torch.stack([source[i].image for i in range(len(source))])
    return Section(
        title="Drawn by the model, and drawn by hand",
        text="First the fine solution, then the first pictures of the training data (DiceBear critters, CC0).",
        pictures=[
            picture(fine, f"model, {FINE} evaluations", columns=COLUMNS, scale=2),
            picture(real, "training data", columns=COLUMNS, scale=2),
        ],
        command=f"ornstein sample {args.model} --sampler unipc-3 --grid log-snr --steps {FINE} --seed {args.seed} "
        f"--n {args.n} --out {args.out}/fine",
    )


def _measured() -> Section | None:
    """Fréchet and kernel distances measured beforehand: thousands of images, too long for a demo."""
    file = files("ornstein").joinpath("weights", "critters", "distances.json")
    if not file.is_file():
        return None
    data: dict[str, Any] = parse_json(file.read_text("utf-8"))
    names = list(dict.fromkeys(cell["sampler"] for cell in data["cells"]))

    def curves(key: str) -> list[Curve]:
        return [
            Curve(
                name=name,
                style=SAMPLERS.index(name),
                x=[cell["evaluations"] for cell in data["cells"] if cell["sampler"] == name],
                y=[cell[key] for cell in data["cells"] if cell["sampler"] == name],
            )
            for name in names
        ]

    rows = [[name, *(f"{cell['FD-lite0']:.1f}" for cell in data["cells"] if cell["sampler"] == name)] for name in names]
    evaluations = sorted({cell["evaluations"] for cell in data["cells"]})
    return Section(
        title="Distance to the data",
        text=f"Measured beforehand: {data['n']} samples of each cell against {data['n_data']} training pictures, on "
        f"EfficientNet-lite0 features (this is not an FID). {data['floor_text']} "
        "Where the curves are flat, the sampler has done its work and the rest is the model's.",
        charts=[
            (
                "Fréchet distance",
                chart(
                    curves("FD-lite0"), x="network evaluations", y="FD-lite0", log_x=True, log_y=True, ticks=evaluations
                ),
            ),
            (
                "Kernel distance",
                chart(curves("KID-lite0"), x="network evaluations", y="KID-lite0", log_x=True, ticks=evaluations),
            ),
        ],
        table=Table(head=["FD-lite0", *(str(n) for n in evaluations)], rows=rows),
        command=data["command"],
    )


def _training(args: DemoArgs, run: TrainedModel, live: Path | None) -> Section | None:
    """Loss curves of the shipped model (from its card) and of the live run (from its log)."""
    charts: list[tuple[str, str]] = []
    history = run.folder / "history.json"
    if history.is_file():
        shipped: dict[str, Any] = load_json(history, CheckpointError, "export the model again, or delete it")
        curves = [Curve(name=name, x=shipped["images"], y=ys) for name, ys in shipped["levels"].items()]
        charts.append(
            (
                "The shipped model's training, by noise level (log-SNR)",
                chart(curves, x="images seen", y="loss", log_x=True, log_y=True, marks=False),
            )
        )
    if live is not None and (live / "metrics.jsonl").is_file():
        lines = load_lines(live / "metrics.jsonl", CheckpointError, "delete the folder of the demo")
        xs, ys = [line["images"] for line in lines], [line["loss"] for line in lines]
        charts.append(
            ("The live run, just now", chart([Curve(name="loss", x=xs, y=ys)], x="images seen", y="loss", log_y=True))
        )
    if not charts:
        return None
    pictures: list[Picture] = []
    if live is not None:
        from ..runs import open_run
        from ..sampling import sample

        images = sample(open_run(live).denoiser, 8, sampler="dpmpp-2m", steps=15, seed=args.seed)
        pictures.append(
            picture(
                images,
                f"The live run after {args.images} images: a start, for minutes more see ornstein train --minutes",
                columns=8,
            )
        )
    card = run.details.get("card", {})
    command, remark = card.get("command", ""), card.get("note", "")
    commands = [line for line in (command, live_command(args) if live is not None else "") if line]
    return Section(
        title="Training",
        text="Pictures after so short a training are blots of the right colours, not yet critters. The loss is on the "
        "network's output; at a given noise level it has a floor above zero, so flat is not bad.",
        charts=charts,
        pictures=pictures,
        notes=[remark] if remark else [],
        command="\n".join(commands),
    )
