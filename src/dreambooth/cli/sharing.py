"""Commands that hand a run on: export."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from dreambooth.cli.shared import Json, app, print_json


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
    from dreambooth.export import MANIFEST
    from dreambooth.export import export as write
    from dreambooth.export.hub import push_to_hub as push

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
