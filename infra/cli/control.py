"""Commands about keys and routes, and the audit trail of both."""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from infra.cli.options import AsJson, app, console, print_json, print_table
from infra.cli.views import existing_log
from infra.config.settings import load_settings
from infra.control.audit import local_actor
from infra.control.keys import create_key, keys_on, revoke_key
from infra.control.routes import (
    canary,
    drain,
    promote,
    release,
    roll_back,
    routes_on,
    set_route,
)
from infra.installation.log import open_log
from schemas.endpoints import Endpoint
from schemas.envelope import DEFAULT_TENANT
from schemas.keys import ApiKey, Scope
from schemas.routes import Route, RouteTarget
from streams.views.audit import AuditTrail
from streams.views.follower import read_views

keys_app = typer.Typer(no_args_is_help=True, help="API keys of the gateway.")
routes_app = typer.Typer(
    no_args_is_help=True, help="What each logical name serves; a change by hand holds it."
)
app.add_typer(keys_app, name="keys")
app.add_typer(routes_app, name="routes")

Reason = Annotated[str, typer.Option(help="For the audit trail.")]
Name = Annotated[str, typer.Argument(help="Logical name.")]
Version = Annotated[
    str, typer.Argument(help="Version, as in `everloop checkpoints` or `everloop routes list`.")
]


@keys_app.command("create")
def create(
    scope: Annotated[
        list[Scope], typer.Option(help="What it is good for; several times for several.")
    ],
    tenant: Annotated[str, typer.Option(help="Whose events its calls are.")] = DEFAULT_TENANT,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[
        int | None, typer.Option(min=1, help="Days until it expires; never by default.")
    ] = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    budget: Annotated[
        float | None, typer.Option(min=0, help="Most it may cost in a month.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Create a key. It is shown this once; only its hash is kept."""
    expires = datetime.now(UTC) + timedelta(days=days) if days else None
    with open_log(load_settings()) as log:
        secret, key = create_key(
            log,
            local_actor(),
            tenant,
            scope,
            label,
            expires,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            budget=budget,
        )
    if as_json:
        print_json(_row(key) | {"key": secret})
    else:
        console.print(f"{secret}\n[dim]Keep it: it is not shown again. Its id is {key.id}.[/]")


@keys_app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys, revoked ones too."""
    with existing_log(load_settings()) as log:
        rows = [_row(key) for key in keys_on(log).values()]
    if as_json:
        print_json(rows)
        return
    print_table(
        "API keys",
        ("id", "tenant", "scopes", "label", "expires", "revoked"),
        [
            (r["id"], r["tenant"], ", ".join(r["scopes"]), r["label"], r["expires"], r["revoked"])
            for r in rows
        ],
    )


@keys_app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="As in `list`.")],
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Refuse a key from now on. Running gateways follow at once."""
    with existing_log(load_settings()) as log:
        key = revoke_key(log, local_actor(), key_id, reason)
    if as_json:
        print_json(_row(key))
    else:
        console.print(f"Key {key.id} is revoked.")


@routes_app.command("list")
def list_routes(as_json: AsJson = False) -> None:
    """List the routes: what serves each logical name."""
    with existing_log(load_settings()) as log:
        routes = sorted(routes_on(log).values(), key=lambda route: route.name)
    if as_json:
        print_json([route.model_dump(mode="json") for route in routes])
        return
    print_table(
        "Routes",
        ("name", "kind", "versions", "held", "reason"),
        [
            (
                r.name,
                r.kind,
                ", ".join(f"{t.version} ({t.weight:g})" for t in r.targets)
                + (f"; control {r.control.version} ({r.control.weight:g})" if r.control else ""),
                r.held,
                r.reason,
            )
            for r in routes
        ],
    )


@routes_app.command("set")
def set_command(
    name: Name,
    base_url: Annotated[
        str, typer.Option(help="OpenAI-compatible server, up to and including /v1.")
    ],
    model: Annotated[str, typer.Option(help="The name the server knows the model by.")],
    version: Annotated[
        str | None, typer.Option(help="How the version is called; by default after the model.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds the server's key.")
    ] = None,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Serve a model from an endpoint."""
    endpoint = Endpoint(base_url=base_url, model=model, api_key_env=api_key_env)
    target = RouteTarget(version=version or f"manual:{model}", endpoint=endpoint)
    with open_log(load_settings()) as log:
        _print_route(
            set_route(log, local_actor(), Route(name=name, kind="model", targets=[target]), reason),
            as_json,
        )


@routes_app.command("promote")
def promote_command(
    name: Name, version: Version, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Serve a checkpoint to all new rollouts, whatever the gate says, and hold it there."""
    with existing_log(load_settings()) as log:
        _print_route(promote(log, local_actor(), name, version, reason), as_json)


@routes_app.command("rollback")
def rollback_command(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Serve what was served before, and hold it there."""
    with existing_log(load_settings()) as log:
        _print_route(roll_back(log, local_actor(), name, reason), as_json)


@routes_app.command("canary")
def canary_command(
    name: Name,
    version: Version,
    share: Annotated[
        float, typer.Option(min=0.001, max=0.999, help="Share of new rollouts.")
    ] = 0.05,
    reason: Reason = "",
    as_json: AsJson = False,
) -> None:
    """Serve a checkpoint to a share of new rollouts."""
    with existing_log(load_settings()) as log:
        _print_route(canary(log, local_actor(), name, version, share, reason), as_json)


@routes_app.command("drain")
def drain_command(
    name: Name, version: Version, reason: Reason = "", as_json: AsJson = False
) -> None:
    """Give a version no new rollouts."""
    with existing_log(load_settings()) as log:
        _print_route(drain(log, local_actor(), name, version, reason), as_json)


@routes_app.command("release")
def release_command(name: Name, reason: Reason = "", as_json: AsJson = False) -> None:
    """Let the gate decide again."""
    with existing_log(load_settings()) as log:
        _print_route(release(log, local_actor(), name, reason), as_json)


@app.command()
def audit(as_json: AsJson = False) -> None:
    """Show all changes by hand, the oldest first: who made them, and why."""
    with existing_log(load_settings()) as log:
        trail = AuditTrail()
        read_views(log, trail)
    events = trail.entries
    if as_json:
        print_json(
            [{"time": e.time.isoformat(), **e.payload.model_dump(mode="json")} for e in events]
        )
        return
    rows = [
        (
            f"{e.time:%Y-%m-%d %H:%M:%S}",
            e.payload.actor,
            e.payload.action,
            e.payload.subject,
            e.payload.reason,
        )
        for e in events
    ]
    print_table("Audit trail", ("time (UTC)", "actor", "action", "subject", "reason"), rows)


def _print_route(route: Route, as_json: bool) -> None:
    if as_json:
        print_json(route)
    else:
        console.print(
            f"{route.name} serves"
            f" {', '.join(f'{t.version} ({t.weight:g})' for t in route.targets)}."
        )


def _row(key: ApiKey) -> dict[str, Any]:
    return key.model_dump(mode="json", exclude={"sha256"})
