"""`python -m dreambooth.toybox`: renders the world, trains its model in pieces, measures it and packs it."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth.errors import RunError, UserError
from dreambooth.paths import cache_root
from dreambooth.toybox.model.sizes import NETWORKS, SIZES

if TYPE_CHECKING:
    from dreambooth.toybox.model.train import Bench


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
    except (UserError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m dreambooth.toybox", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    render = _command(commands, "render", _render, "render the bundled subjects, or one subject's photos and truth")
    render.add_argument("--out", type=Path, required=True, help="folder to write into")
    render.add_argument("--class", dest="cls", help="class of the one subject")
    render.add_argument("--subject-seed", type=int, default=0, help="seed of the one subject (default 0)")
    data = _command(commands, "data", _data, "render the data set that the model is trained on; continues where it was")
    data.add_argument("--count", type=int, default=24_000, help="renders in all (default 24,000)")
    data.add_argument("--seed", type=int, default=1)
    data.add_argument("--processes", type=int, default=2, help="how many render at a time (default 2)")
    data.add_argument("--world", type=Path, default=_default_world(), help="folder of the data set")
    train = _command(commands, "train", _train, "train one network, or all in order; run it again to go on")
    train.add_argument("network", nargs="?", choices=NETWORKS)
    train.add_argument("--hours", type=float, help="stop after this long and keep the state")
    train.add_argument("--steps", type=int, help="instead of the size's own number")
    train.add_argument("--seed", type=int, default=0)
    package = _command(commands, "package", _package, "write the stock folders that ship")
    package.add_argument("--out", type=Path, help="default: in the cache")
    evaluate = _command(commands, "evaluate", _evaluate, "measure the packaged model against truth")
    evaluate.add_argument("--package", type=Path, help="default: in the cache")
    evaluate.add_argument("--prompts", type=int, help="instead of the size's own number")
    card = _command(commands, "card", _card, "print the model card")
    card.add_argument("--out", type=Path, help="write what was recorded into this page, between its marks")
    train.add_argument("--world", type=Path, default=_default_world(), help="folder of the data set")
    for command in (train, package, evaluate, card):
        command.add_argument("--size", default="cpu", choices=SIZES)
    return parser


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], None],
    help_line: str,
) -> argparse.ArgumentParser:
    command = commands.add_parser(name, help=help_line, description=help_line)
    command.set_defaults(run=run)
    return command


def _default_world() -> Path:
    return cache_root() / "toybox" / "world-1"


def _home(chosen: argparse.Namespace) -> Path:
    return cache_root() / "toybox" / str(chosen.size)


def _render(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox.world.bundle import render_bundle, render_subject

    if chosen.cls:
        render_subject(chosen.cls, chosen.subject_seed, chosen.out)
    else:
        render_bundle(chosen.out)


def _data(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox.world.dataset import render_dataset

    render_dataset(chosen.world, chosen.count, chosen.seed, chosen.processes)


def _bench(chosen: argparse.Namespace) -> Bench:
    import torch

    from dreambooth.toybox.model.renders import load_world
    from dreambooth.toybox.model.train import Bench

    size = SIZES[chosen.size]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return Bench(chosen.size, size, load_world(chosen.world, size.held_out), _home(chosen), device)


def _train(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox.model.train import RECORD, train

    bench, began = _bench(chosen), time.monotonic()
    for network in [chosen.network] if chosen.network else NETWORKS:
        if (bench.home / network / RECORD).exists():
            print(f"{network}: done before")
            continue
        plan = bench.size.networks[network].plan
        plan = replace(plan, steps=chosen.steps or plan.steps)
        left = chosen.hours and chosen.hours * 3600 - (time.monotonic() - began)
        for point in train(bench, network, plan, chosen.seed, left):
            values = "  ".join(f"{name} {value:.4g}" for name, value in point.values.items())
            print(f"{network} {point.step}/{plan.steps}  {point.seconds / 60:.1f} min  {values}", flush=True)
        if not (bench.home / network / RECORD).exists():
            print(f"{network}: time is up; run the same command to go on")
            return


def _package(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox.model.package import check_sizes, write

    out = chosen.out or _home(chosen) / "package"
    write(_home(chosen), out)
    print(f"{out}: {check_sizes(out) / 1e6:.1f} MB")


def _evaluate(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox.model import evaluate
    from dreambooth.toybox.model.card import EVALUATION

    home = _home(chosen)
    count = chosen.prompts or SIZES[chosen.size].prompts
    result = evaluate.evaluate(chosen.package or home / "package", count, home)
    evaluate.write(result, home / EVALUATION)
    print(json.dumps({"chosen": result["chosen"], "model": result["model"]}, indent=1))


def _card(chosen: argparse.Namespace) -> None:
    from dreambooth.toybox import pages
    from dreambooth.toybox.model import card
    from dreambooth.toybox.model.evaluate import SHEET

    home = _home(chosen)
    parts = card.parts(home)
    if chosen.out is None:
        print("\n".join(parts.values()))
        return
    for name in parts:
        pages.require(chosen.out, *card.marks(name))
    for name, part in parts.items():
        pages.fill(chosen.out, *card.marks(name), part)
    if (home / SHEET).is_file():
        shutil.copyfile(home / SHEET, chosen.out.with_name(f"{chosen.out.stem}-{SHEET}"))


if __name__ == "__main__":
    sys.exit(main())
