"""Commands that make something else of a run: export, average."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dreambooth.cli.shared import Json, LogFormat, app, print_json, reporting


@app.command
def export(
    run: Annotated[Path, Parameter(help="Run folder.")],
    /,
    *,
    format: Annotated[
        Literal["diffusers", "kohya", "comfyui", "single-file", "merged"], Parameter(help="Who is to read it.")
    ] = "diffusers",
    out: Annotated[Path | None, Parameter(help="Folder to write. Default: export/FORMAT in the run.")] = None,
    push_to_hub: Annotated[str | None, Parameter(help="OWNER/NAME: upload it to that hub repository, private.")] = None,
    json: Json = False,
) -> None:
    """Write a run in the form that other programs read, prove it, and describe it in a model card."""
    with reporting("text"):
        from dreambooth.export import MANIFEST
        from dreambooth.export import export as write
        from dreambooth.export.hub import push_to_hub as push
        from dreambooth.export.hub import require_possible

        if push_to_hub:
            require_possible(push_to_hub)
        folder = write(run, format, out)
        address = push(folder, push_to_hub) if push_to_hub else None
    made = json_module.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if json:
        print_json({"folder": str(folder), "address": address, **made})
        return
    for name in made["sha256"]:
        print(folder / name)
    print(f"proof    {made['proof']}")
    if address:
        print(f"uploaded {address}")


@app.command
def average(
    run: Annotated[Path, Parameter(help="Finished run that was trained with --ema-profiles.")],
    /,
    *,
    width: Annotated[float, Parameter(help="Share of the steps that it is spread over, 0.04 to 0.2.")] = 0.1,
    out: Annotated[Path | None, Parameter(help="Folder of the new run. Default: beside the run.")] = None,
    log_format: LogFormat = "text",
    json: Json = False,
) -> None:
    """Make a run that ships an average of another one's weights, chosen after training; then `evaluate` both."""
    with reporting(log_format) as reporter:
        from dreambooth.post_hoc import average as make

        made = make(run, width, out, reporter)
    if json:
        print_json({"run": str(made.path), **made.info["average"]})
    else:
        print(made.path)
