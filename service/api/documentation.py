"""The OpenAPI document, and the page that shows it: a browser loads Swagger UI for it, exactly the release named."""

from __future__ import annotations

import base64
import hashlib

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse

# From https://registry.npmjs.org/swagger-ui-dist; the hashes are of its files (openssl dgst -sha384).
SWAGGER_UI = "https://cdn.jsdelivr.net/npm/swagger-ui-dist@5.35.0"
SCRIPT_SHA384 = "gjRm0bEPMeTmMh5jT2cHccIwCUZSTd8YC+j0d0sXw0MdGEfScduGpSyF3ZSSLkX9"
STYLE_SHA384 = "WlYgdmXYOOBWL5apwjDEZwN+U3HmXSSu5R6V5aGxEcf7z+KuRNwBhoxKVN1i3D5I"
START = (
    'SwaggerUIBundle({url: "/openapi.json", dom_id: "#swagger-ui", deepLinking: true, showExtensions: true, '
    "showCommonExtensions: true})"
)
PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>SAM3 LoRA training service</title>
<link rel="stylesheet" href="{SWAGGER_UI}/swagger-ui.css" integrity="sha384-{STYLE_SHA384}" crossorigin="anonymous">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{SWAGGER_UI}/swagger-ui-bundle.js" integrity="sha384-{SCRIPT_SHA384}" crossorigin="anonymous"></script>
<script>{START}</script>
</body>
</html>
"""
START_SHA256 = base64.b64encode(hashlib.sha256(START.encode()).digest()).decode()
POLICY = (
    f"default-src 'none'; script-src {SWAGGER_UI}/swagger-ui-bundle.js 'sha256-{START_SHA256}'; "
    f"style-src {SWAGGER_UI}/swagger-ui.css 'unsafe-inline'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter(include_in_schema=False)


@router.get("/openapi.json")
@router.get("/v1/openapi.json")
async def show_document(request: Request) -> JSONResponse:
    """What all operations take and answer."""
    return JSONResponse(request.app.openapi())


@router.get("/docs", response_class=HTMLResponse)
def show_documentation() -> HTMLResponse:
    """Swagger UI."""
    return HTMLResponse(PAGE, headers={"Content-Security-Policy": POLICY})
