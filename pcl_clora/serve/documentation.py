"""The page that documents the HTTP address, made from its OpenAPI description; it needs no script."""

from __future__ import annotations

import html
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from pcl_clora.serve.settings import ServeSettings

_EXAMPLES = """curl -F file=@scan.ply {base}/predict
curl -F file=@scan.ply '{base}/predict?output=ply' -o labelled.ply
curl --data-binary @scan.ply -H 'Content-Type: application/octet-stream' '{base}/embed?name=scan.ply'
curl --json '{{"points": [[0, 0, 0], [1, 0, 0], [0, 1, 0]]}}' {base}/predict"""


@cache
def style() -> str:
    """Read the style of the plain pages."""
    return (files("pcl_clora.serve") / "page" / "plain.css").read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    """Make a plain page of a body of html."""
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' "
        f"content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title>"
        f"<style>{style()}</style></head><body>{body}</body></html>"
    )


def documentation_page(api: Mapping[str, Any], settings: ServeSettings, base: str) -> str:
    """Write the documentation.

    Args:
        api: the OpenAPI description.
        settings: limits, which the page names.
        base: address of the server, as whoever asks knows it.
    """
    info = api["info"]
    token = "curl -H 'Authorization: Bearer TOKEN'" if settings.token else ""
    examples = _EXAMPLES.format(base=base)
    examples = examples.replace("curl", token) if token else examples
    limits = (
        f"At most {settings.max_upload_mib:g} MiB and {settings.max_points:,} points a cloud, "
        f"{settings.timeout_s:g} s a request, {settings.queue} requests at once. Files: "
        f"{', '.join(settings.types)}."
    )
    parts = [
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>",
        f"<p>{html.escape(info.get('summary', ''))} For programs: <a href='/openapi.json'>openapi.json</a>"
        + (", for people: <a href='/app/'>the page</a>.</p>" if settings.app else ".</p>"),
        f"<p>{html.escape(limits)}</p><pre>{html.escape(examples)}</pre>",
    ]
    for path, verbs in api["paths"].items():
        for verb, told in verbs.items():
            parts.append(_endpoint(api, path, verb, told))
    return page("pcl-clora", "".join(parts))


def _endpoint(api: Mapping[str, Any], path: str, verb: str, told: Mapping[str, Any]) -> str:
    text = [
        f"<h2><span class='verb'>{verb.upper()}</span> {html.escape(path)}</h2>",
        f"<p>{html.escape(told.get('description', ''))}</p>",
    ]
    rows = [
        [
            given["name"],
            _kind(api, given["schema"]),
            given["schema"].get("default", ""),
            given.get("description", ""),
        ]
        for given in told.get("parameters", ())
    ]
    if rows:
        text.append(_table(("parameter", "kind", "default", "what"), rows))
    bodies = told.get("requestBody", {}).get("content", {})
    if bodies:
        text.append(_table(("body", "what"), [[kind, _body(of["schema"])] for kind, of in bodies.items()]))
    fields = _fields(api, told)
    if fields:
        text.append(_table(("answer", "kind", "what"), fields))
    statuses = [[status, of["description"]] for status, of in told["responses"].items()]
    text.append(_table(("status", "when"), statuses))
    return "".join(text)


def _body(schema: Mapping[str, Any]) -> str:
    inside = schema.get("properties", {})
    return schema.get("description") or "; ".join(
        f"{name}: {of.get('description', 'rows of three numbers')}" for name, of in inside.items()
    )


def _fields(api: Mapping[str, Any], told: Mapping[str, Any]) -> list[list[Any]]:
    """List the fields of an answer, those of the models' answers among them."""
    schema = told["responses"].get("200", {}).get("content", {}).get("application/json", {}).get("schema", {})
    rows: list[list[Any]] = []

    def add(schema: Mapping[str, Any], before: str) -> None:
        for name, of in _resolved(api, schema).get("properties", {}).items():
            rows.append([before + name, _kind(api, of), of.get("description", "")])
            inner = of.get("items", {})
            if "$ref" in inner:
                add(inner, f"{before}{name}[].")

    add(schema, "")
    return rows


def _resolved(api: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" in schema:
        found: Mapping[str, Any] = api["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _kind(api: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Name the kind of a value in a word or two."""
    schema = _resolved(api, schema)
    if "anyOf" in schema:
        return " or ".join(_kind(api, one) for one in schema["anyOf"] if one.get("type") != "null")
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    kind = str(schema.get("type", "any"))
    return f"list of {_kind(api, schema['items'])}" if kind == "array" else kind


def _table(header: tuple[str, ...], rows: list[list[Any]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
