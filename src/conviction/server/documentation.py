"""The documentation of the API: its schema, and plain HTML at /docs that needs no network."""

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, cast

from fastapi import APIRouter, FastAPI, Request
from starlette.responses import HTMLResponse

from conviction.answers import kinds
from conviction.policies import policy_names
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


_SECURITY_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """The documentation for people."""
    headers = {"content-security-policy": _SECURITY_POLICY}
    return HTMLResponse(_page(request.app.openapi()), headers=headers)


def openapi(app: FastAPI) -> Json:
    """The documentation for programs: FastAPI's schema, with what this very server accepts."""
    if app.openapi_schema is None:
        _add_bounds(FastAPI.openapi(app), app.state.service)
    return cast("Json", app.openapi_schema)


def _add_bounds(schema: Json, service: Service) -> None:
    ceilings, resolver = service.settings.ceilings, service.resolver
    schemas = schema["components"]["schemas"]
    conviction = schemas["ConvictionOptions"]["properties"]
    for name, ceiling in (
        ("budget", ceilings.budget),
        ("time_limit", ceilings.seconds),
        ("concurrency", ceilings.concurrency),
        ("total_tokens", ceilings.total_tokens),
    ):
        if ceiling is not None:
            _number(conviction[name])["maximum"] = ceiling
    conviction["answers"]["anyOf"] = [{"type": "string", "enum": list(kinds())}, {"type": "null"}]
    names = "|".join(policy_names())
    conviction["policy"]["anyOf"] = [
        {"type": "string", "enum": list(resolver.policies)},
        {"type": "string", "pattern": f"^({names}):[a-z_]+=", "maxLength": 1000},
        {"type": "null"},
    ]
    for name in ("ChatRequest", "CompletionRequest"):
        fields = schemas[name]["properties"]
        fields["model"]["anyOf"] = [
            {"type": "string", "enum": resolver.models},
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
    fields = ""
    if body:
        rows = "".join(_rows(schemas[_name(body["schema"])], "", schemas))
        fields = f"<table><tr><th>Field</th><th>Type</th><th>Meaning</th></tr>{rows}</table>"
    return (
        f'<details><summary><span class="method">{method.upper()}</span> '
        f"<code>{escape(path)}</code></summary>"
        f"<p>{escape(operation.get('description', ''))}</p>{fields}"
        f"<table><tr><th>Status</th><th>Meaning</th></tr>{answers}</table></details>"
    )


def _rows(schema: Json, prefix: str, schemas: Json) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        mark = " (required)" if name in required else ""
        alternatives: list[Json] = field.get("anyOf") or [field]
        types = " or ".join(dict.fromkeys(_type(one) for one in alternatives))
        yield (
            f"<tr><td><code>{escape(prefix + name)}</code>{mark}</td>"
            f"<td>{escape(types)}</td><td>{escape(field.get('description', ''))}</td></tr>"
        )
        for one in alternatives:
            inner = _name(one) or _name(one.get("items", {}))
            if inner:
                yield from _rows(schemas[inner], f"{prefix}{name}.", schemas)


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _type(schema: Json) -> str:
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
