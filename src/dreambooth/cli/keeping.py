"""Commands about what is kept: models, cache."""

from __future__ import annotations

from cyclopts import App

from dreambooth.cli.shared import Json, app, print_json

cache_app = App(name="cache", help="What is kept for reuse: class images.")
app.command(cache_app)


@app.command
def models(*, json: Json = False) -> None:
    """List the base models that are known by name."""
    from dreambooth.models import CARDS

    if json:
        names = ("name", "family", "repository", "licence", "gated")
        print_json([{name: getattr(card, name) for name in names} for card in CARDS])
        return
    for card in CARDS:
        gate = ", gated" if card.gated else ""
        print(f"{card.name:<12} {card.resolution:>5} px  {card.repository or 'in the package'} ({card.licence}{gate})")
        print(f"{'':<12} {card.note}")


@cache_app.command(name="list")
def cache_list(*, json: Json = False) -> None:
    """List the class-image sets that are kept."""
    from dreambooth.class_sets import sets

    found = sets()
    if json:
        print_json(found)
        return
    for entry in found:
        print(f"{entry['megabytes']:8.1f} MB  {entry['images']:>5} x '{entry['prompt']}'  {entry['folder']}")
    if not found:
        print("nothing is kept")


@cache_app.command(name="clear")
def cache_clear(*, json: Json = False) -> None:
    """Remove what is kept. Runs make it again when they need it."""
    from dreambooth.class_sets import clear

    freed = clear()
    if json:
        print_json({"megabytes": freed})
    else:
        print(f"{freed:.1f} MB freed")
