"""``qunlearn unlearn``: apply one method to a run and a deletion request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from qunlearn.cli import common
from qunlearn.cli.common import Settings, new_folder, parse_assignments, require_workstation


@common.command(
    "unlearn",
    data=True,
    example="""
qunlearn unlearn runs/base --forget group=theo --method oeu -o runs/oeu
qunlearn unlearn runs/base --forget request.json --method ft --set lr=0.01 --set epochs=5 -o runs/ft
""",
)
@click.argument("run", type=click.Path())
@click.option("--forget", required=True, help="A JSON or CSV file, class=7, group=NAME, ids=@file, random=10%.")
@click.option("--method", required=True, help="Name from `qunlearn methods`.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="A hyper-parameter; repeatable.")
@click.option("--submitted", type=click.Path(), help="The forget samples as their owner submitted them (`eve craft`).")
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run.")
@click.option("-o", "--output", required=True, type=click.Path(), help="Run folder to write.")
def command(
    settings: Settings,
    run: str,
    forget: str,
    method: str,
    assignments: tuple[str, ...],
    submitted: str | None,
    seed: int,
    resume: bool,
    output: str,
) -> int:
    """Make a trained run forget the samples of a deletion request.

    --set lr=auto settles the learning rate by short pilots first, scored without a retrained network.
    """
    require_workstation()
    from qunlearn import quant, tasks
    from qunlearn.cli import artefact, eve_files, settle
    from qunlearn.cli import workspace as ws
    from qunlearn.data.request import Request
    from qunlearn.data.splits import make_splits
    from qunlearn.unlearn import METHODS

    configured = METHODS[method].from_settings(parse_assignments(assignments))
    configured.validate()
    request = Request.parse(forget)
    model, config = artefact.open_run(Path(run))
    dataset = ws.data_of_run(settings, config)
    splits = make_splits(dataset, request, seed=seed)
    given = splits if submitted is None else eve_files.as_submitted(splits, Path(submitted))
    card = ws.load_card(Path(run), model)
    folder = new_folder(output, resume=resume)
    search: dict[str, Any] | None = None
    if configured.unsettled:
        configured, search = settle.settled(
            settings, configured, model, given, config.task, card=card, seed=seed, folder=folder, resume=resume
        )
    with settings.progress(method) as update:
        result = configured(
            model,
            given,
            tasks.get(config.task),
            request_kind=request.kind,
            card=card,
            seed=seed,
            run_dir=folder,
            resume=resume,
            progress=ws.step_progress(update),
        )
    value: dict[str, Any] = {
        **result.to_json(),
        "request": {"kind": request.kind, "digest": request.digest(dataset, seed), "text": request.describe()},
        "before": ws.accuracies(model, splits),
        "after": ws.accuracies(result.model, splits),
    }
    if search is not None:
        value |= {"lr_search": search}
        value |= {k: value[k] + search[k] for k in ("passes", "seconds")}
    ws.write_json(folder / ws.RESULT, value)
    after = ws.with_provenance(
        config,
        command="unlearn",
        method=method,
        method_seed=seed,
        forgotten=value["request"]["digest"],
        unlearned_from=result.digests["model_before"],
    )
    quant.save_run(folder, result.model, after)
    ws.drop_state(folder)
    (folder / settle.NAME).unlink(missing_ok=True)
    settings.result({**value, "run": str(folder)}, ws.unlearn_text(value, folder))
    return 0
