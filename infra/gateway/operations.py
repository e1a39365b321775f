"""What operators ask the gateway: is it healthy, what does it serve, what has it done."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from infra.gateway.services import Shared

router = APIRouter()


@router.get("/healthz")
async def health(services: Shared) -> JSONResponse:
    """Say whether events reach the log. The gateway serves on when they do not: `spooling` is no failure."""
    status = services.publisher.status
    state = "losing events" if status.lost else "spooling" if status.spooled or status.error else "ok"
    body: dict[str, Any] = {
        "status": state,
        "events": {
            "accepted": dict(status.accepted),
            "lost": dict(status.lost),
            "spooled": status.spooled,
            "error": status.error,
        },
        "requests": dict(services.requests),
        "switches": services.routing.switches,
    }
    return JSONResponse(body, status_code=503 if status.lost else 200)


@router.get("/livez")
async def live() -> dict[str, str]:
    """Say that the process answers; nothing that starting it again would mend is looked at."""
    return {"status": "ok"}


@router.get("/readyz")
async def ready(services: Shared) -> JSONResponse:
    """Say whether there is anything to serve."""
    names = sorted(services.routing.routes)
    return JSONResponse({"ready": bool(names), "names": names}, status_code=200 if names else 503)


@router.get("/everloop/v1/routes")
async def routes(services: Shared) -> JSONResponse:
    """List what is served now."""
    return JSONResponse(
        {
            "routes": [
                {
                    "name": route.name,
                    "kind": route.kind,
                    "targets": [
                        {
                            "version": target.version,
                            "weight": target.weight,
                            "endpoint": target.endpoint.model_dump() if target.endpoint else None,
                        }
                        for target in route.targets
                    ],
                }
                for _, route in sorted(services.routing.routes.items())
            ]
        }
    )
