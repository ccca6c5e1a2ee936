"""The command line: parse, dispatch, print. No torch at the top of any module here: `--help` must be instant."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any

import typer

from avssl import __version__
from avssl.cli.usage import CLICK_ERROR, of_the_system, one_line
from avssl.errors import AvsslError, Exit

app = typer.Typer(
    name="avssl",
    help="Self-supervised learning of audio, video and text: pretrain, fine-tune, evaluate, embed, search.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(show: bool) -> None:
    if show:
        print(f"avssl {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", metavar="PLUGIN", help="Switch a plugin off.")
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of every command, given before its name."""
    if without:
        from avssl.registry import DISABLE

        os.environ[DISABLE] = ",".join([*filter(None, os.environ.get(DISABLE, "").split(",")), *without])


@cache
def _command() -> Callable[..., Any]:
    """Every command, registered once however often a process calls `main`."""
    from avssl.cli import (
        bench,
        classify,
        data,
        debug,
        demo,
        doctor,
        embed,
        evaluate,
        export,
        launch,
        listing,
        models,
        predict,
        report,
        reproduce,
        search,
        train,
    )

    panels: dict[str, dict[str, Callable[..., None]]] = {
        "Train": {
            "pretrain": train.pretrain,
            "finetune": train.finetune,
            "reproduce": reproduce.reproduce,
            "launch": launch.launch,
        },
        "Use": {
            "evaluate": evaluate.evaluate,
            "embed": embed.embed,
            "search": search.search,
            "predict": predict.predict,
            "classify": classify.classify,
            "import": models.import_,
            "export": export.export,
        },
        "Look": {
            "demo": demo.demo,
            "report": report.report,
            "bench": bench.bench,
            "recipes": listing.recipes,
            "backbones": listing.backbones,
            "losses": listing.losses,
            "doctor": doctor.doctor,
        },
    }
    for panel, commands in panels.items():
        for name, function in commands.items():
            app.command(name, rich_help_panel=panel)(function)
    app.add_typer(data.app, name="data", rich_help_panel="Use")
    app.add_typer(debug.debug_app, name="debug", rich_help_panel="Look")
    app.add_typer(listing.plugins_app, name="plugins", rich_help_panel="Look")
    return typer.main.get_command(app)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning as one line, as errors are: where in the code it was raised tells a user nothing."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    """The entry point `avssl`. Every known error is one line on stderr and a documented exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    if not debug:
        warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show is no reason to stop
    try:
        code = _command()(arguments, prog_name="avssl", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else Exit.OK)
    except AvsslError as error:
        if debug:
            raise
        from avssl.data.source import shown

        kind = "stopped" if error.code == Exit.STOPPED else "error"
        print(f"{kind}: {shown(str(error))}", file=sys.stderr)  # one line, whatever is in an id or a path
        sys.exit(int(error.code))
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
    except CLICK_ERROR as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it is no error: the help is its message
            error.show()  # type: ignore[attr-defined]
        else:
            print(f"error: {one_line(error, app, arguments)}", file=sys.stderr)
        sys.exit(Exit.USAGE)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(Exit.INTERRUPTED)
    except BrokenPipeError:  # `avssl ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(Exit.OK)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, OSError) and (refused := of_the_system(error)):
            print(f"error: {refused}", file=sys.stderr)
            sys.exit(Exit.USAGE)
        print(
            f"internal error: {type(error).__name__}: {error} (please report it; `avssl --debug ...` shows where)",
            file=sys.stderr,
        )
        sys.exit(Exit.BUG)
