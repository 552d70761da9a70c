"""The OpenAPI document as one page for people, which needs no script and no other host.

No error leaves this module.
"""

import html
import json
from typing import Any, Final

Json = dict[str, Any]

_STYLE: Final = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h2 { margin: 2.5rem 0 0; font-size: 1.4rem; overflow-wrap: anywhere; }
code, pre { font: 0.9em/1.4 ui-monospace, monospace; }
pre { background: var(--soft); padding: 0.75rem; overflow-x: auto; }
h3 { margin: 1rem 0 0.25rem; font-size: 1rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: 0.3rem 0.75rem 0.3rem 0; border-top: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
summary { cursor: pointer; }
"""


def page(document: Json) -> str:
    """The page as HTML."""
    information = document["info"]
    title = f"{information['title']} {information['version']}"
    operations = [
        _operation(method, path, item[method], document)
        for path, item in document["paths"].items()
        for method in ("get", "post")
        if method in item
    ]
    schemas = [
        f'<h2 id="{html.escape(name)}"><code>{html.escape(name)}</code></h2>{_json(schema)}'
        for name, schema in document["components"]["schemas"].items()
    ]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        "<body><main>"
        f"<h1>{html.escape(title)}</h1><p>{_text(information['description'])}</p>"
        '<p>The same for machines: <a href="/openapi.json">/openapi.json</a>, OpenAPI 3.1. To try it: '
        "<code>curl -F 'file=@cat.jpg' http://127.0.0.1:5000/upload</code></p>"
        f"{''.join(operations)}{_common_answers(document)}<h1>Objects</h1>{''.join(schemas)}</main></body></html>\n"
    )


def _operation(method: str, path: str, operation: Json, document: Json) -> str:
    parts = [
        f"<h2><code>{method.upper()} {html.escape(path)}</code></h2><p>{_text(operation['summary'])}"
        f"{'' if operation['summary'].endswith('?') else '.'} "
        f"{_text(operation.get('description', ''))}</p>"
    ]
    parameters = [_resolved(each, document) for each in operation["parameters"]]
    rows = [
        (
            f"<code>{html.escape(each['name'])}</code>",
            each["in"],
            _text(each["description"]) + f" <code>{html.escape(_brief(each['schema']))}</code>",
        )
        for each in parameters
    ]
    parts.append(_table("Parameters", rows))
    if "requestBody" in operation:
        rows = [
            (f"<code>{html.escape(kind)}</code>", "", _schema(body["schema"]))
            for kind, body in operation["requestBody"]["content"].items()
        ]
        parts.append(_table("Body", rows))
    parts.append(_answers("Answers", {key: each for key, each in operation["responses"].items() if "$ref" not in each}))
    return "".join(parts)


def _answers(title: str, responses: Json) -> str:
    rows = [
        (
            status,
            "<br>".join(f"<code>{html.escape(kind)}</code>" for kind in response["content"]),
            _text(response["description"]) + " " + _schema(next(iter(response["content"].values()))["schema"]),
        )
        for status, response in responses.items()
    ]
    return _table(title, rows)


def _common_answers(document: Json) -> str:
    """What every operation refers to, once."""
    referring = [operation["responses"] for item in document["paths"].values() for operation in item.values()]
    found = {
        status: _resolved(response, document)
        for responses in referring
        for status, response in responses.items()
        if "$ref" in response
    }
    return f"<h2>Before there is a request</h2>{_answers('Answers', dict(sorted(found.items())))}"


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"<tr><th scope=row>{first}</th><td>{second}</td><td>{third}</td></tr>" for first, second, third in rows]
    return f"<h3>{title}</h3><table>{''.join(lines)}</table>"


def _schema(schema: Json) -> str:
    references = [each["$ref"].rsplit("/", 1)[1] for each in schema.get("oneOf", [schema]) if "$ref" in each]
    if references:
        return " or ".join(f'<a href="#{name}">{name}</a>' for name in references)
    return f"<code>{html.escape(_brief(schema))}</code>"


def _brief(schema: Json) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _json(schema: Json) -> str:
    return f"<details><summary>Schema</summary><pre>{html.escape(json.dumps(schema, indent=1))}</pre></details>"


def _resolved(node: Json, document: Json) -> Json:
    if "$ref" in node:
        _, kind, name = node["$ref"].removeprefix("#/").split("/")
        found: Json = document["components"][kind][name]
        return found
    return node


def _text(words: str) -> str:
    """Escaped, with what is between backticks as code."""
    pieces = html.escape(words).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
