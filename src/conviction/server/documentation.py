"""The documentation of the API at /docs: plain HTML made here, so it needs no network."""

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, cast

from fastapi import FastAPI
from starlette.responses import HTMLResponse

from conviction.answers import kinds
from conviction.policies import policy_names
from conviction.server.choosing import runnable_policies
from conviction.server.service import Service

Json = dict[str, Any]

_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif }
body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, .method { font-family: ui-monospace, monospace }
.method { font-weight: 700 }
table { border-collapse: collapse; width: 100%; margin: .5rem 0 1rem }
td, th { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0;
  border-bottom: 1px solid color-mix(in srgb, currentColor 20%, transparent) }
summary { cursor: pointer; padding: .4rem 0 }
"""


def add(app: FastAPI, service: Service) -> None:
    """Add /docs, and make the schema say what this very server takes."""
    made: Json = {}

    def openapi() -> Json:
        if not made:
            made.update(FastAPI.openapi(app))
            _tell_bounds(made, service)
        return made

    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(openapi()), headers={"content-security-policy": _POLICY})

    app.openapi = openapi
    app.add_api_route("/docs", docs, include_in_schema=False)


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"


def _tell_bounds(schema: Json, service: Service) -> None:
    ceilings = service.settings.ceilings
    models = [service.model, *(f"{service.model}@{name}" for name in runnable_policies(service))]
    schemas = schema["components"]["schemas"]
    wishes = schemas["Wishes"]["properties"]
    _number(wishes["budget"])["maximum"] = ceilings.budget
    _number(wishes["time_limit"])["maximum"] = ceilings.seconds
    if ceilings.concurrency is not None:
        _number(wishes["concurrency"])["maximum"] = ceilings.concurrency
    if ceilings.total_tokens is not None:
        _number(wishes["total_tokens"])["maximum"] = ceilings.total_tokens
    wishes["answers"]["anyOf"] = [{"type": "string", "enum": list(kinds())}, {"type": "null"}]
    names = "|".join(policy_names())
    wishes["policy"]["anyOf"] = [
        {"type": "string", "enum": list(runnable_policies(service))},
        {"type": "string", "pattern": f"^({names}):[a-z_]+=", "maxLength": 1000},
        {"type": "null"},
    ]
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        fields["model"]["anyOf"] = [
            {"type": "string", "enum": models},
            {"type": "string", "pattern": f"^{re.escape(service.model)}@({names}):[a-z_]+="},
        ]
        for limit in ("max_tokens", "max_completion_tokens"):
            if limit in fields:
                _number(fields[limit])["maximum"] = ceilings.max_tokens
    for path in cast("dict[str, dict[str, Json]]", schema["paths"]).values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if service.settings.keys:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"key": []}]


def _number(field: Json) -> Json:
    return next(one for one in field["anyOf"] if one["type"] in ("integer", "number"))


def _page(schema: Json) -> str:
    schemas = schema["components"]["schemas"]
    operations = "".join(
        _operation(path, method, operation, schemas)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>conviction: API</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{_STYLE}</style><body><h1>conviction: API</h1>"
        f"<p>{escape(schema['info']['description'])} "
        'For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{operations}</body></html>"
    )


def _operation(path: str, method: str, operation: Json, schemas: Json) -> str:
    body = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    answers = "".join(
        f"<tr><td><code>{escape(status)}</code></td><td>{escape(one['description'])}</td></tr>"
        for status, one in operation["responses"].items()
    )
    fields = _table(_name(body["schema"]), schemas) if body else ""
    return (
        f'<details><summary><span class="method">{method.upper()}</span> '
        f"<code>{escape(path)}</code></summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{fields}"
        f"<table><tr><th>Status</th><th>Meaning</th></tr>{answers}</table></details>"
    )


def _table(name: str, schemas: Json) -> str:
    rows = "".join(_rows(schemas[name], "", schemas))
    return f"<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{rows}</table>"


def _rows(schema: Json, prefix: str, schemas: Json) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        mark = " (required)" if name in required else ""
        yield (
            f"<tr><td><code>{escape(prefix + name)}</code>{mark}</td>"
            f"<td>{escape(_type(field))}</td><td>{escape(field.get('description', ''))}</td></tr>"
        )
        for one in _alternatives(field):
            inner = _name(one) or _name(one.get("items", {}))
            if inner:
                yield from _rows(schemas[inner], f"{prefix}{name}.", schemas)


def _alternatives(field: Mapping[str, Any]) -> list[Json]:
    return field.get("anyOf") or [dict(field)]


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _type(field: Json) -> str:
    return " or ".join(dict.fromkeys(_one_type(one) for one in _alternatives(field)))


def _one_type(schema: Json) -> str:
    if name := _name(schema):
        return name
    if "enum" in schema or "const" in schema:
        return ", ".join(str(value) for value in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "any"))
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"))
        if key in schema
    ]
    return f"{kind} {', '.join(bounds)}".strip()
