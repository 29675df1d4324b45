"""The command that does with a subject what the paper does: apply."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dreambooth.cli.shared import Json, LogFormat, app, print_json, reporting


@app.command
def apply(
    run: Annotated[Path, Parameter(help="Run folder.")],
    applications: Annotated[
        list[str],
        Parameter(
            help="recontext, art, views, properties, accessories, expressions, hybrids, comic, or a YAML list of own "
            "prompts; several are done one after another."
        ),
    ],
    /,
    *,
    count: Annotated[int, Parameter(help="Pictures of each cell.")] = 4,
    seed: Annotated[int, Parameter(help="Seed of each cell's first picture.")] = 0,
    kind: Annotated[
        Literal["live", "object"] | None, Parameter(help="Whether the subject lives. Default: by its class.")
    ] = None,
    identity_encoder: Annotated[str | None, Parameter(help="Encoder of likeness. Default: by the base model.")] = None,
    clip_encoder: Annotated[str | None, Parameter(help="Encoder of pictures and prompts.")] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Draw the paper's applications as labelled grids, score every cell and mark the weak ones."""
    with reporting(log_format) as reporter:
        from dreambooth.applications import apply as apply_run

        made = apply_run(
            run,
            applications,
            count=count,
            seed=seed,
            kind=kind,
            identity_encoder=identity_encoder,
            clip_encoder=clip_encoder,
            reporter=reporter,
        )
    if json:
        print_json({each.name: each.document for each in made})
        return
    for each in made:
        weak = [cell for cell in each.cells if cell.weak]
        print(f"{each.application.title}: {len(weak)} of {len(each.cells)} cells are weak")
        for cell in weak:
            print(f"  {cell.caption}")
        print(f"  {each.folder / 'grid.png'}")
