"""Write the command line reference into its page while the site is built.

The page `reference/cli.md` holds a marker. The text that replaces it is read from the signatures of the
registered commands, so it cannot differ from the program.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

PAGE = "reference/cli.md"
MARKER = "<!-- commands -->"
_TYPES = {str: "text", int: "integer", float: "number", Path: "path"}


@dataclass(frozen=True)
class Parameter:
    """An argument or option of a command, as its function declares it."""

    name: str
    kind: object
    default: object
    info: ArgumentInfo | OptionInfo

    @property
    def required(self) -> bool:
        """True if the command cannot run without it."""
        return self.default is inspect.Parameter.empty

    @property
    def title(self) -> str:
        """Its flags, or the name of an argument in capitals."""
        if isinstance(self.info, ArgumentInfo):
            return (self.info.metavar or self.name.upper()).strip("[]")
        declared = (
            self.info.default,
            *(self.info.param_decls or ()),
        )  # Typer keeps the first one as `default`
        flags = [flag for each in declared if isinstance(each, str) for flag in each.split("/")]
        return ", ".join(flags or [f"--{self.name.replace('_', '-')}"])


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Replace the marker of the command line's page. MkDocs calls this for each page.

    Args:
        markdown: The page's source.
        page: MkDocs' page object.

    Returns:
        The source to render.
    """
    if page.file.src_uri != PAGE:
        return markdown
    return markdown.replace(MARKER, "\n\n".join(sections().values()))


def sections() -> dict[str, str]:
    """Return the reference of each command as Markdown, sorted by name."""
    from refdiff.cli.entry import app

    commands = {info.name or info.callback.__name__: info.callback for info in app.registered_commands}
    return {name: _section(name, commands[name]) for name in sorted(commands)}


def parameters(function: Callable[..., Any]) -> Iterator[Parameter]:
    """Yield the arguments and options that a command's function declares."""
    hints = get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        annotated = hints[name]
        if get_origin(annotated) in (Union, types.UnionType):  # Annotated[...] | None
            annotated = next(each for each in get_args(annotated) if get_origin(each) is Annotated)
        kind, info, *_ = get_args(annotated)
        yield Parameter(name, kind, parameter.default, info)


def _section(name: str, function: Callable[..., Any]) -> str:
    every = [each for each in parameters(function) if not each.info.hidden]
    arguments = [each for each in every if isinstance(each.info, ArgumentInfo)]
    options = [each for each in every if isinstance(each.info, OptionInfo)]
    usage = [each.title if each.required else f"[{each.title}]" for each in arguments]
    parts = [
        f"## refdiff {name}",
        inspect.getdoc(function) or "",
        "```text\n" + " ".join(["refdiff", name, *usage, "[OPTIONS]"]) + "\n```",
        _table("Argument", arguments),
        _table("Option", options),
    ]
    return "\n\n".join(part for part in parts if part)


def _table(title: str, rows: list[Parameter]) -> str:
    if not rows:
        return ""
    head = [f"| {title} | Type | Default | Description |", "|---|---|---|---|"]
    return "\n".join(head + [_row(each) for each in rows])


def _row(each: Parameter) -> str:
    limits = [f"≥ {each.info.min}" if each.info.min is not None else ""]
    limits += [f"≤ {each.info.max}" if each.info.max is not None else ""]
    kind = ", ".join(part for part in (_kind(each.kind), *limits) if part)
    titles = ", ".join(f"`{title}`" for title in each.title.split(", "))
    cells = [titles, kind, _default(each), each.info.help or ""]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _kind(kind: object) -> str:
    if get_origin(kind) in (Union, types.UnionType):
        return _kind(next(each for each in get_args(kind) if each is not type(None)))
    if get_origin(kind) is list:
        return f"{_kind(get_args(kind)[0])}, repeatable"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{member.value}`" for member in kind)
    return "flag" if kind is bool else _TYPES.get(kind, "text")  # type: ignore[call-overload]


def _default(each: Parameter) -> str:
    if each.required:
        return "required"
    value = each.default.value if isinstance(each.default, Enum) else each.default
    return "" if value is None or value is False or value == [] else f"`{value}`"


if __name__ == "__main__":
    typer.echo("\n\n".join(sections().values()))
