"""The web page and the interactive docs: fixed files under fixed names, so that no request names a file."""

from importlib.resources import files
from importlib.resources.abc import Traversable

from fastapi import FastAPI
from starlette.responses import Response

_DOCS = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<main id="swagger-ui"></main>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"""
_START = """SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#swagger-ui",
  presets: [SwaggerUIBundle.presets.apis],
  layout: "BaseLayout",
  validatorUrl: null,
});
"""


def add_pages(app: FastAPI) -> None:
    """Add the routes of the page and of /docs; the latter's program comes from a package, as nothing is fetched."""
    page, swagger = files("convai.serve") / "page", files("fastapi_offline") / "static"
    _add_file(app, "/", page / "index.html", "text/html")
    _add_file(app, "/page.css", page / "page.css", "text/css")
    _add_file(app, "/page.js", page / "page.js", "text/javascript")
    _add_file(app, "/docs/swagger-ui.css", swagger / "swagger-ui.css", "text/css")
    _add_file(app, "/docs/swagger-ui-bundle.js", swagger / "swagger-ui-bundle.js", "text/javascript")
    _add_text(app, "/docs", _DOCS, "text/html")
    _add_text(app, "/docs/start.js", _START, "text/javascript")


def _add_file(app: FastAPI, path: str, file: Traversable, media_type: str) -> None:
    async def read() -> Response:
        return Response(file.read_bytes(), media_type=media_type, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, read, methods=["GET"], include_in_schema=False)


def _add_text(app: FastAPI, path: str, text: str, media_type: str) -> None:
    async def answer() -> Response:
        return Response(text, media_type=media_type, headers={"Cache-Control": "no-cache"})

    app.add_api_route(path, answer, methods=["GET"], include_in_schema=False)
