"""The OpenAPI document as one page for people, which needs no script and no other host.

No error leaves this module.
"""

import html
import json
from collections.abc import Iterable
from typing import Any, Final

Json = dict[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --soft: #f2f2f2; background: Canvas; color: CanvasText; }
@media (prefers-color-scheme: dark) { :root { --soft: #262626; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin: 2.5rem 0 0; font-size: 1.4rem; }
code, pre { font: 0.9em/1.4 ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--soft); padding: 0.75rem; white-space: pre-wrap; }
h3 { margin: 1rem 0 0.25rem; font-size: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.75rem 0.3rem 0; border-top: 1px solid var(--line); }
th { font-weight: 600; }
th code, td:nth-child(2) code { white-space: nowrap; }
summary { cursor: pointer; }
@media (max-width: 45rem) {
  tr { display: block; padding: 0.3rem 0; border-top: 1px solid var(--line); }
  th, td { display: block; padding: 0; border: 0; }
}
"""
_EVERYWHERE: Final = "X-Request-ID"  # the header that need not be named each time


def page(document: Json) -> str:
    """The page as HTML."""
    information, components = document["info"], document["components"]
    title = html.escape(f"{information['title']} {information['version']}")
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    shown = [_operation(method, path, operation, document) for method, path, operation in operations]
    schemas = [
        f'<h2 id="{html.escape(name)}"><code>{html.escape(name)}</code></h2>{_more("Schema", schema)}'
        for name, schema in components["schemas"].items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main><h1>{title}</h1><p>{_text(information['description'])}</p>"
        '<p>The same for machines: <a href="/openapi.json">/openapi.json</a>, OpenAPI 3.1. To try it: '
        "<code>curl -F 'file=@cat.jpg' http://127.0.0.1:5000/upload</code></p>"
        f"{_keys(components.get('securitySchemes', {}))}{''.join(shown)}"
        f"{_common([operation for _, _, operation in operations], document)}"
        f"<h1>Headers</h1>{_headers(components['headers'])}<h1>Objects</h1>{''.join(schemas)}</main></body></html>\n"
    )


def _keys(schemes: Json) -> str:
    """How to send a key, where keys are wanted."""
    if not schemes:
        return ""
    ways = [
        f"{scheme['name']}: KEY" if scheme["type"] == "apiKey" else f"Authorization: {scheme['scheme'].title()} KEY"
        for scheme in schemes.values()
    ]
    sent = " or ".join(f"<code>{html.escape(way)}</code>" for way in ways)
    return f'<h2 id="key">Keys</h2><p>Some of this wants a key, sent as {sent}.</p>'


def _operation(method: str, path: str, operation: Json, document: Json) -> str:
    summary = operation["summary"]
    about = [summary if summary.endswith("?") else f"{summary}.", operation.get("description", "")]
    key = ' Wants <a href="#key">a key</a>.' if "security" in operation else ""
    parts = [
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{_text(' '.join(about).strip())}{key}</p>",
        _parameters([each for each in operation["parameters"] if not _is_common(each)], document),
    ]
    if "requestBody" in operation:
        bodies = operation["requestBody"]["content"].items()
        rows = [(f"<code>{html.escape(kind)}</code>", "", _schema(body["schema"])) for kind, body in bodies]
        parts += [_table("Body", rows), *_examples(operation["requestBody"])]
    own = {status: response for status, response in operation["responses"].items() if "$ref" not in response}
    return "".join([*parts, _answers(own), *_examples(own["200"])])


def _common(operations: list[Json], document: Json) -> str:
    """What is the same for every operation, once."""
    parameters = [each for each in operations[0]["parameters"] if _is_common(each)]
    answers = {
        status: _resolved(response, document)
        for operation in operations
        for status, response in operation["responses"].items()
        if "$ref" in response
    }
    return f"<h1>Every request</h1>{_parameters(parameters, document)}{_answers(dict(sorted(answers.items())))}"


def _is_common(parameter: Json) -> bool:
    return parameter["$ref"].rpartition("/")[2] in ("requestId", "traceparent")


def _parameters(references: list[Json], document: Json) -> str:
    rows = [
        (
            f"<code>{html.escape(each['name'])}</code>",
            each["in"] + (", required" if each.get("required") else ""),
            f"{_text(each['description'])} <code>{html.escape(_brief(each['schema']))}</code>",
        )
        for each in (_resolved(reference, document) for reference in references)
    ]
    return _table("Parameters", rows) if rows else ""


def _answers(responses: Json) -> str:
    rows = [
        (
            status,
            "<br>".join(f"<code>{html.escape(kind)}</code>" for kind in response["content"]),
            f"{_text(response['description'])} {_schema(next(iter(response['content'].values()))['schema'])}"
            f"{_with([name for name in response['headers'] if name != _EVERYWHERE])}",
        )
        for status, response in responses.items()
    ]
    return _table("Answers", rows)


def _with(headers: list[str]) -> str:
    return f", with {', '.join(_link('header-' + name, name) for name in headers)}" if headers else ""


def _headers(headers: Json) -> str:
    rows = [
        (
            f'<code id="header-{html.escape(name)}">{html.escape(name)}</code>',
            "always there" if header.get("required") else "",
            f"{_text(header['description'])} <code>{html.escape(_brief(header['schema']))}</code>",
        )
        for name, header in headers.items()
    ]
    return _table(f"Of answers that name them, and {_EVERYWHERE} of all", rows)


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"<tr><th scope=row>{first}</th><td>{second}</td><td>{third}</td></tr>" for first, second, third in rows]
    return f"<h3>{title}</h3><table>{''.join(lines)}</table>"


def _schema(schema: Json) -> str:
    references = [each["$ref"].rsplit("/", 1)[1] for each in schema.get("oneOf", [schema]) if "$ref" in each]
    if references:
        return " or ".join(_link(name, name) for name in references)
    return f"<code>{html.escape(_brief(schema))}</code>"


def _link(identifier: str, name: str) -> str:
    return f'<a href="#{html.escape(identifier)}">{html.escape(name)}</a>'


def _brief(schema: Json) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _examples(body: Json) -> Iterable[str]:
    return (_more("Example", media["example"]) for media in body["content"].values() if "example" in media)


def _more(title: str, value: Json) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"


def _resolved(node: Json, document: Json) -> Json:
    _, kind, name = node["$ref"].removeprefix("#/").split("/")
    found: Json = document["components"][kind][name]
    return found


def _text(words: str) -> str:
    """Escaped, with what is between backticks as code."""
    pieces = html.escape(words).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
