"""What is there and what fits what: recipes, backbones, losses, plugins. Instant: no torch."""

from __future__ import annotations

from typing import Annotated

import typer
from typer import Argument, Option

from avssl.cli.output import print_json, print_table, say
from avssl.errors import Exit, check

AsJson = Annotated[bool, Option("--json", help="Print JSON.")]
plugins_app = typer.Typer(help="Installed plugins and what they bring.", invoke_without_command=True)


def recipes(
    action: Annotated[str, Argument(metavar="ACTION", help="`list`, `show NAME`, or `schema`.")] = "list",
    name: Annotated[
        str | None,
        Argument(metavar="NAME", help="A recipe to show, or a .toml file.", autocompletion=lambda: complete("recipe")),
    ] = None,
    overrides: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="Show it with this change.")
    ] = None,
    source: Annotated[
        bool, Option("--source", help="Show the file with its comments and sources, not the resolved tree.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List recipes, or show one: fully resolved, or its file with the source of each number."""
    from avssl.registry import listing, registry

    check(action in ("list", "show", "schema"), f"recipes {action}: no such action", fix="list, show NAME or schema")
    if action != "show":
        given = [word for word, value in ((name, name), ("--set", overrides), ("--source", source)) if value]
        check(not given, f"recipes {action} takes no {' and no '.join(map(str, given))}",
              fix=f"avssl recipes show {name or 'NAME'} takes it")  # fmt: skip
    if action == "show":
        check(name is not None, "recipes show needs a name", fix="see `avssl recipes`")
        check(not (source and overrides), "--source shows the file as it stands, without --set",
              fix="give one of the two")  # fmt: skip
        assert name is not None
        _show_recipe(name, overrides or [], source, as_json)
    elif action == "schema":
        from avssl.recipe_schema import recipe_schema

        print_json(recipe_schema())
    elif as_json:
        print_json(listing("recipe"))
    else:
        print_table(("recipe", "stage", "summary"), [(r.name, r.stage, r.summary) for r in registry().all("recipe")])


def _show_recipe(name: str, overrides: list[str], source: bool, as_json: bool) -> None:
    from pathlib import Path

    from avssl.recipe import Recipe, load_recipe, show
    from avssl.registry import registry
    from avssl.schema import unstructure

    if source:
        path = Path(name) if name.endswith(".toml") else registry().get("recipe", name).path
        text = path.read_text(encoding="utf-8")
        if as_json:
            print_json({"path": str(path), "source": text})
        else:
            print(text, end="")
        return
    recipe = load_recipe(name, overrides)
    if as_json:
        print_json(recipe.plain() if isinstance(recipe, Recipe) else unstructure(recipe))
    else:
        print(show(recipe), end="")


def backbones(
    table: Annotated[bool, Option("--table", help="Sizes instead: parameters, multiply-accumulates, memory.")] = False,
    as_json: AsJson = False,
) -> None:
    """List backbones: what they read and which losses can train them."""
    from avssl.registry import listing, load, registry

    reg = registry()
    if table:
        sized = [b.name for b in reg.all("backbone") if b.sizes]
        sizes = [{"backbone": name, **row} for name in sized for row in load("backbone", name, "sizes")()]
        if as_json:
            print_json(sizes)
        elif sizes:
            columns = list(dict.fromkeys(key for row in sizes for key in row))
            cells = [[row.get(key, "-") for key in columns] for row in sizes]
            print_table(columns, [[f"{v:,}" if isinstance(v, int) else v for v in row] for row in cells])
        return
    if as_json:
        print_json([{**e, "losses": reg.fitting_losses(e["name"])} for e in listing("backbone")])
        return
    rows = [
        (b.name, ", ".join(sorted(b.modalities)), ", ".join(reg.fitting_losses(b.name)), b.summary)
        for b in reg.all("backbone")
    ]
    print_table(("backbone", "reads", "losses that fit", "summary"), rows)


def losses(as_json: AsJson = False) -> None:
    """List losses: what they need and which backbones they can train."""
    from avssl.registry import listing, registry

    reg = registry()
    if as_json:
        print_json([{**e, "backbones_that_fit": reg.fitting_backbones(e["name"])} for e in listing("loss")])
        return
    rows = [
        (x.name, "fine-tuning" if x.supervised else "pretraining", ", ".join(reg.fitting_backbones(x.name)), x.summary)
        for x in reg.all("loss")
    ]
    print_table(("loss", "for", "backbones that fit", "summary"), rows)


@plugins_app.callback()
def plugins(context: typer.Context, as_json: AsJson = False) -> None:
    """List plugins; a broken one says why and spoils nothing else."""
    if context.invoked_subcommand is not None:
        return
    from avssl.registry import registry
    from avssl.schema import unstructure

    found = registry().plugins
    if as_json:
        print_json([unstructure(p) for p in found])
        return
    rows = []
    for p in found:
        state = "off" if p.disabled else f"BROKEN: {p.error}" if p.error else "ok"
        kinds = sorted({k for k, _ in p.entries})
        what = ", ".join(f"{sum(k == kind for k, _ in p.entries)} {kind}" for kind in kinds)
        rows.append((p.name, p.label, state, what))
    print_table(("plugin", "from", "state", "brings"), rows)


@plugins_app.command("check")
def plugins_check(
    name: Annotated[str, Argument(metavar="NAME", help="A plugin from `avssl plugins`.")],
    as_json: AsJson = False,
) -> None:
    """Run the conformance suite over a plugin's entries: shapes, masks, gradients, determinism, save and load."""
    from avssl.testing import check_plugin

    results = check_plugin(name)
    if as_json:
        print_json(results)
    else:
        print_table(("entry", "check", "result"), [(r["entry"], r["check"], r["error"] or "ok") for r in results])
    failed = sum(bool(r["error"]) for r in results)
    say(f"{len(results) - failed} of {len(results)} checks passed")
    if failed:
        raise typer.Exit(Exit.GATE)


def complete(kind: str) -> list[str]:
    """Names for shell completion."""
    from avssl.registry import registry

    return [e.name for e in registry().all(kind)]
