"""Renders the OpenAPI document as one HTML page, without scripts and without requests to other hosts."""

import html
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from serve.api.openapi.document import Json

_TEMPLATE: Final = Path(__file__).with_name("docs_page.html")
_ON_EVERY_RESPONSE: Final = "X-Request-ID"  # a header that is not repeated for each response


def render_docs_page(document: Json) -> str:
    """Returns the page as HTML."""
    information, components = document["info"], document["components"]
    operations = [
        (method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()
    ]
    schemas = [
        f'<h2 id="{html.escape(name)}">{_code(name)}</h2>{_details("Schema", schema)}'
        for name, schema in components["schemas"].items()
    ]
    parts = {
        "title": html.escape(f"{information['title']} {information['version']}"),
        "description": _text(information["description"]),
        "keys": _keys(components.get("securitySchemes", {})),
        "operations": "\n".join(_operation(*each, document) for each in operations),
        "every_request": _every_request([operation for _, _, operation in operations], document),
        "headers": _headers(components["headers"]),
        "objects": "\n".join(schemas),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _TEMPLATE.read_text(encoding="utf-8"))


def _keys(schemes: Json) -> str:
    """Describes how to send an API key, if the document asks for one."""
    if not schemes:
        return ""
    ways = [
        f"{scheme['name']}: KEY" if scheme["type"] == "apiKey" else f"Authorization: {scheme['scheme'].title()} KEY"
        for scheme in schemes.values()
    ]
    sent = " or ".join(map(_code, ways))
    return f'<h2 id="key">API keys</h2><p>Some operations require an API key, sent as {sent}.</p>'


def _operation(method: str, path: str, operation: Json, document: Json) -> str:
    title = f"{method.upper()} {path}"
    summary = operation["summary"]
    about = [summary if summary.endswith("?") else f"{summary}.", operation.get("description", "")]
    key = ' Requires <a href="#key">an API key</a>.' if "security" in operation else ""
    parts = [
        f"<h2>{_code(title)}</h2><p>{_text(' '.join(about).strip())}{key}</p>",
        _parameters([each for each in operation["parameters"] if not _is_shared(each)], document),
    ]
    if "requestBody" in operation:
        bodies = operation["requestBody"]["content"].items()
        rows = [(_code(kind), "", _schema(body["schema"])) for kind, body in bodies]
        parts += [_table("Body", rows), *_examples(operation["requestBody"])]
    own = {status: response for status, response in operation["responses"].items() if "$ref" not in response}
    return "".join([*parts, _responses(own), *_examples(own["200"])])


def _every_request(operations: list[Json], document: Json) -> str:
    """Renders what all operations share: parameters, and the responses of the server itself, before routing."""
    parameters = [each for each in operations[0]["parameters"] if _is_shared(each)]
    responses = {
        status: _resolved(response, document)
        for operation in operations
        for status, response in operation["responses"].items()
        if "$ref" in response
    }
    return _parameters(parameters, document) + _responses(dict(sorted(responses.items())))


def _is_shared(parameter: Json) -> bool:
    return parameter["$ref"].rpartition("/")[2] in ("requestId", "traceparent")


def _parameters(references: list[Json], document: Json) -> str:
    rows = [
        (_code(each["name"]), each["in"] + (", required" if each.get("required") else ""), _described(each))
        for each in (_resolved(reference, document) for reference in references)
    ]
    return _table("Parameters", rows) if rows else ""


def _responses(responses: Json) -> str:
    rows = [
        (
            status,
            "<br>".join(map(_code, response["content"])),
            f"{_text(response['description'])} {_schema(next(iter(response['content'].values()))['schema'])}"
            f"{_with_headers([name for name in response['headers'] if name != _ON_EVERY_RESPONSE])}",
        )
        for status, response in responses.items()
    ]
    return _table("Responses", rows)


def _with_headers(headers: list[str]) -> str:
    return f", with {', '.join(_link('header-' + name, name) for name in headers)}" if headers else ""


def _headers(headers: Json) -> str:
    rows = [
        (
            f'<code id="header-{html.escape(name)}">{html.escape(name)}</code>',
            "always" if header.get("required") else "",
            _described(header),
        )
        for name, header in headers.items()
    ]
    return _table(f"Response headers, where listed; {_ON_EVERY_RESPONSE} is on every response", rows)


def _table(title: str, rows: list[tuple[str, str, str]]) -> str:
    lines = [f"<tr><th scope=row>{first}</th><td>{second}</td><td>{third}</td></tr>" for first, second, third in rows]
    return f"<h3>{title}</h3><table>{''.join(lines)}</table>"


def _described(item: Json) -> str:
    """Renders the description and the schema of a parameter or a header."""
    return f"{_text(item['description'])} {_schema(item['schema'])}"


def _schema(schema: Json) -> str:
    references = [each["$ref"].rsplit("/", 1)[1] for each in schema.get("oneOf", [schema]) if "$ref" in each]
    if references:
        return " or ".join(_link(name, name) for name in references)
    return _code(json.dumps(schema, ensure_ascii=False))


def _link(identifier: str, name: str) -> str:
    return f'<a href="#{html.escape(identifier)}">{html.escape(name)}</a>'


def _examples(body: Json) -> Iterable[str]:
    return (_details("Example", media["example"]) for media in body["content"].values() if "example" in media)


def _details(title: str, value: Json) -> str:
    text = json.dumps(value, indent=1, ensure_ascii=False)
    return f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"


def _resolved(node: Json, document: Json) -> Json:
    _, kind, name = node["$ref"].removeprefix("#/").split("/")
    found: Json = document["components"][kind][name]
    return found


def _code(text: str) -> str:
    return f"<code>{html.escape(text)}</code>"


def _text(words: str) -> str:
    """Escapes text for HTML and sets what stands between backticks as code."""
    pieces = html.escape(words).split("`")
    return "".join(f"<code>{piece}</code>" if number % 2 else piece for number, piece in enumerate(pieces))
