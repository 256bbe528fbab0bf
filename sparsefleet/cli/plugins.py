"""``plugins list`` and ``plugins show``."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Any

import click

from sparsefleet.cli.plugins_allow import allow
from sparsefleet.cli.plugins_check import check
from sparsefleet.cli.plugins_new import new
from sparsefleet.cli.session import Session, json_option, plugin_option, verb
from sparsefleet.cli.talk import data, emit, say

if TYPE_CHECKING:
    from sparsefleet.registry import Catalog, Entry

_PROSE = ("paper", "rule", "cannot")
_refresh = click.option("--refresh", is_flag=True, help="Describe every plugin anew instead of reading the cache.")


@click.group(epilog="\b\nExample:\n  sparsefleet plugins list")
def plugins() -> None:
    """List the plugins, broken ones too."""


def _list(session: Session, family: str | None, refresh: bool, as_json: bool) -> None:
    """Every plugin with its distribution and state; a broken one with its reason."""
    from sparsefleet.report.layout import Column, text_lines

    entries = [e for e in _catalog(session, refresh).entries if family in (None, e.family, *(("?",) if e.family == "?" else ()))]
    fields = ("family", "name", "distribution", "version", "state", "reason")
    if as_json:
        emit({"plugins": [{**{f: getattr(e, f) for f in fields}, "deprecated": e.facts.get("deprecated", [])} for e in entries]})
        return
    if not entries:
        data("no plugins")
        return
    told = ("family", "name", "distribution", "version", "state")
    data(text_lines([*(Column(f, [getattr(e, f) for e in entries]) for f in told), Column("", [e.reason or e.summary for e in entries])]))
    broken = [e for e in entries if e.state != "ok"]
    if broken:
        say(f"{len(broken)} of {len(entries)} cannot be used; the others are not affected")
    for entry in entries:
        for text in entry.facts.get("deprecated", []):
            say(f"{entry.family} {entry.name} of {entry.distribution} {entry.version}: {text}")


def _show(session: Session, name: str, refresh: bool, as_json: bool) -> None:
    """One plugin: where it comes from, its facts and its hyper-parameters.

    NAME is a plugin's name, or FAMILY/NAME where two families share one.
    """
    from sparsefleet.report.layout import Column, text_lines

    entries = _find(_catalog(session, refresh), name)
    if as_json:
        fields = ("family", "name", "distribution", "version", "state", "reason", "module", "digest", "summary", "schema", "facts")
        emit({"plugins": [{f: getattr(e, f) for f in fields} for e in entries]})
        return
    for entry in entries:
        data(f"{entry.family} {entry.name}: {entry.summary}".rstrip(": "))
        data(f"  from    {entry.distribution} {entry.version} ({entry.module}), {entry.state}")
        if entry.reason:
            data(f"  reason  {entry.reason}")
        for fact in _PROSE:
            data(_wrapped(fact, entry.facts.get(fact) or ""))
        facts = ", ".join(f"{k}={json.dumps(v)}" for k, v in entry.facts.items() if k not in _PROSE and v not in (False, "", None, [], {}))
        data(_wrapped("facts", facts))
        params = [_param(key, prop, entry.schema) for key, prop in entry.schema.get("properties", {}).items()]
        if params:
            headings = ("parameter", "type", "default", "bounds", "meaning")
            columns = [Column(h, cells) for h, cells in zip(headings, zip(*params, strict=True), strict=True)]
            data("  " + line for line in text_lines(columns))


def _wrapped(label: str, text: str) -> list[str]:
    """Text in lines that fit the terminal, the label before the first."""
    room = min(max(shutil.get_terminal_size((100, 24)).columns, 40), 140)
    lines = textwrap.wrap(text, room - 10, break_long_words=False, break_on_hyphens=False)
    return [f"  {label if not number else '':<8}{line}" for number, line in enumerate(lines)]


def _catalog(session: Session, refresh: bool) -> Catalog:
    from sparsefleet.registry import catalog

    session.settings  # noqa: B018  exports the cache's place
    return catalog(refresh=refresh)


def _find(found: Catalog, name: str) -> list[Entry]:
    from sparsefleet.errors import UserError, did_you_mean

    family, _, bare = name.rpartition("/")
    entries = [e for e in found.entries if e.name == bare and family in ("", e.family)]
    if not entries:
        known = sorted({e.name for e in found.entries})
        raise UserError(f"no plugin is called {name!r}", fix=did_you_mean(bare, known))
    return entries


def _param(key: str, prop: dict[str, Any], schema: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """A line of the hyper-parameters' table from its JSON schema."""
    kinds = [str(o["type"]) for o in [prop, *prop.get("anyOf", [])] if "type" in o]
    choices = prop.get("enum") or [o["const"] for o in prop.get("anyOf", []) if "const" in o]
    signs = (("exclusiveMinimum", ">"), ("minimum", "≥"), ("exclusiveMaximum", "<"), ("maximum", "≤"))
    bounds = [f"{sign} {o[word]}" for o in [prop, *prop.get("anyOf", [])] for word, sign in signs if word in o]
    if choices:
        bounds.append("one of " + ", ".join(map(str, choices)))
    required = key in schema.get("required", [])
    default = "required" if required else json.dumps(prop.get("default"))
    return key, " or ".join(kinds) or "object", default, ", ".join(bounds), prop.get("description", "")


_family = click.option("--family", metavar="FAMILY", help="Only this family, e.g. rewirer.")
plugins.add_command(
    verb("list", "plugins list", "plugins list --family rewirer --json", short="Every plugin with its state.")(
        _family(_refresh(plugin_option(json_option(_list))))
    )
)
plugins.add_command(
    verb("show", "plugins show rigl", "plugins show layer/csr --json", short="One plugin and its hyper-parameters.")(
        click.argument("name")(_refresh(plugin_option(json_option(_show))))
    )
)
plugins.add_command(allow)
plugins.add_command(new)
plugins.add_command(check)
