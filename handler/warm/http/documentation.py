"""The interactive API pages, with integrity hashes for the scripts of the CDN."""

from html import escape
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi import docs
from fastapi.responses import HTMLResponse

_CDN = "https://cdn.jsdelivr.net/npm/"
_SWAGGER, _REDOC = f"{_CDN}swagger-ui-dist@5.35.0/", f"{_CDN}redoc@2.5.4/bundles/"
_NO_ICON = "data:,"
#: SHA-384 of the files in those npm packages, for Subresource Integrity.
_DIGESTS = {
    "swagger-ui-bundle.js": "gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9",
    "swagger-ui.css": "WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I",
    "redoc.standalone.js": "w447zOpYfw/1Tv/5AK9NfHTlQIqE3RVR6KY62jCyy9zNDgO64cMwGGP1Fj0zJVf5",
}


def add_documentation(app: FastAPI) -> None:
    """Serve Swagger UI at `/docs` and ReDoc at `/redoc`.

    Create the app with `docs_url=None, redoc_url=None`: FastAPI's pages pin no version or hash.
    """

    async def swagger(request: Request) -> HTMLResponse:
        page = docs.get_swagger_ui_html(
            **_arguments(app, request),
            oauth2_redirect_url=f"{_root_path(request)}/docs/oauth2-redirect",
            swagger_js_url=f"{_SWAGGER}swagger-ui-bundle.js",
            swagger_css_url=f"{_SWAGGER}swagger-ui.css",
            swagger_favicon_url=_NO_ICON,
        )
        return _with_integrity(page)

    async def redoc(request: Request) -> HTMLResponse:
        page = docs.get_redoc_html(
            **_arguments(app, request),
            redoc_js_url=f"{_REDOC}redoc.standalone.js",
            redoc_favicon_url=_NO_ICON,
            with_google_fonts=False,
        )
        return _with_integrity(page)

    async def oauth2_redirect(_: Request) -> HTMLResponse:
        return docs.get_swagger_ui_oauth2_redirect_html()

    app.add_route("/docs", swagger, include_in_schema=False)
    app.add_route("/docs/oauth2-redirect", oauth2_redirect, include_in_schema=False)
    app.add_route("/redoc", redoc, include_in_schema=False)


def _root_path(request: Request) -> str:
    return escape(request.scope.get("root_path", "").rstrip("/"))


def _arguments(app: FastAPI, request: Request) -> dict[str, Any]:
    openapi_url = f"{_root_path(request)}{app.openapi_url}"
    return {"openapi_url": openapi_url, "title": escape(app.title)}


def _with_integrity(page: HTMLResponse) -> HTMLResponse:
    html = bytes(page.body).decode()
    for name, digest in _DIGESTS.items():
        pinned = f'{name}" integrity="sha384-{digest}" crossorigin="anonymous"'
        html = html.replace(f'{name}"', pinned)
    return HTMLResponse(html)
