"""``qunlearn train``: a quantized network from data, or a reference that never saw what a request excludes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, new_folder, require_workstation


@common.command(
    "train",
    data=True,
    example="""
qunlearn train --data kws --model dscnn -o runs/base
qunlearn train --data kws --model dscnn --exclude group=theo -o runs/without
""",
)
@click.option("--data", "source", required=True, help="kws, digits, cifar10, a .npz file, a folder, module:function.")
@click.option("--model", "name", required=True, help="dscnn, resnet8, resnet18, mobilenetv2, or module:function.")
@click.option("--bits", default="w8a8", show_default=True, help="w8a8, w4a8, w4a4 or w2a2.")
@click.option("--weight-range", default="8bit", show_default=True, help="8bit or 7bit weight codes.")
@click.option(
    "--grid", default="auto", show_default=True, help="free, exact (the same codes in every runtime), or auto."
)
@click.option("--epochs", type=click.IntRange(0, 10_000), help="Passes over the data; 0 only quantizes.")
@click.option("--init-from", type=click.Path(), help="Run whose tensors to start from.")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--exclude", help="Deletion request whose samples are left out: a reference model.")
@click.option(
    "--reference-card",
    is_flag=True,
    help="Also train networks without each group (without groups: one class) and keep their values.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("-o", "--output", required=True, type=click.Path(), help="Run folder to write.")
def command(
    settings: Settings,
    source: str,
    name: str,
    bits: str,
    weight_range: str,
    grid: str,
    epochs: int | None,
    init_from: str | None,
    seed: int,
    exclude: str | None,
    reference_card: bool,
    resume: bool,
    output: str,
) -> int:
    """Train a quantized network: a float phase, then quantization-aware."""
    require_workstation()
    from qunlearn import models, quant
    from qunlearn.bench import recipes
    from qunlearn.cli import workspace as ws
    from qunlearn.data.request import Request
    from qunlearn.data.splits import training_samples

    chosen = models.grid_for(name) if grid == "auto" else grid
    spec = quant.QuantSpec.parse(bits, weight_range=weight_range, grid=chosen)
    dataset = ws.load_data(settings, source)
    request = Request.parse(exclude) if exclude is not None else None
    samples = training_samples(dataset, request, seed)
    recipe = recipes.recipe_for(dataset, source, epochs=epochs)
    model = recipes.build_model(name, dataset, spec, seed=seed, init_from=Path(init_from) if init_from else None)
    folder = new_folder(output, resume=resume)
    state = folder / "train.state"
    seconds = ws.train_model(
        model, samples, recipe, seed=seed, label="training", settings=settings, state_file=state, resume=resume
    )
    if reference_card:
        card = ws.reference_card(
            settings,
            dataset,
            name,
            spec,
            recipe,
            seed=seed,
            folder=folder,
            resume=resume,
            base=model,
        )
        card.save(folder / ws.CARD)
    trained, heldout = ws.metrics_of(model, samples), ws.metrics_of(model, dataset.samples("heldout"))
    codes = quant.codes_digest(model)
    result = {
        "train": trained,
        "heldout": heldout,
        "samples": len(samples),
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": seconds,
        "model_digest": quant.state_digest(model),
        "codes_digest": codes,
    }
    config = recipes.run_config(
        name,
        dataset,
        source,
        spec,
        {
            "command": "train",
            "seed": seed,
            "recipe": asdict(recipe),
            "excluded": request.digest(dataset, seed) if request is not None else None,
        },
    )
    ws.write_json(folder / ws.RESULT, result)
    quant.save_run(folder, model, config)
    state.unlink(missing_ok=True)
    settings.result(
        {**result, "run": str(folder)},
        f"{name} {spec.name} on {dataset.title or dataset.name}: train {100 * trained['accuracy']:.1f} %, "
        f"held-out {100 * heldout['accuracy']:.1f} %, {seconds:.0f} s\n"
        f"run {folder}   codes {codes[:16]}",
    )
    return 0
