"""The first routes of an installation: configured models, choices, and each policy's baseline."""

from collections.abc import Mapping
from hashlib import sha256

from infra.config.settings import Settings
from infra.installation.log import open_log
from infra.runtime.errors import ConfigError
from schemas.endpoints import Endpoint
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import ROUTES
from streams.processors.promotion_state import baseline_route
from streams.storage.records import Outgoing
from streams.views.follower import read_views
from streams.views.routes import Routes

CONFIGURED = "configured:"


def publish_initial_routes(settings: Settings, apps: Mapping[str, str]) -> None:
    """Write the routes of the configuration that are not on the log yet.

    A name keeps its route if a version was promoted or is on trial, or if a person holds it. The
    configuration only says what serves first.

    What was promoted or is on trial keeps its route, and so does whatever a person holds: the
    configuration only says where it begins.

    Args:
        apps: where each configured application answers, by its name.

    Raises:
        ConfigError: an application that serves a model does not run.
    """
    with open_log(settings) as log:
        routes = Routes()
        read_views(log, routes)
        served = routes.current
        wanted = [*_model_routes(settings, apps), *_choice_routes(settings)]
        wanted += [
            baseline_route(name)
            for name in (*settings.policies, *settings.baselines)
            if name not in served
        ]
        # A restart must not undo what the gate or a person decided.
        held = {name for name, route in served.items() if route.held or _serves_learned(route)}
        following = [route.with_history_after(served.get(route.name)) for route in wanted]
        changed = [
            route
            for route in following
            # A route that is the same is not written again: it would be a switch for every gateway.
            if route.name not in held and served.get(route.name) != route
        ]
        log.append(
            [
                Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()
                for route in changed
            ]
        )


def _model_routes(settings: Settings, apps: Mapping[str, str]) -> list[Route]:
    try:
        return [
            Route(
                name=name,
                kind="model",
                targets=[_target(model.endpoint(apps))],
                fallbacks=[_target(endpoint) for endpoint in model.fallbacks],
                reason="configuration",
            )
            for name, model in settings.models.items()
        ]
    except KeyError as error:
        raise ConfigError(
            f"apps.{error.args[0]} serves a model and does not run here; `everloop up` starts it,"
            " or name another base_url"
        ) from error


def _choice_routes(settings: Settings) -> list[Route]:
    return [
        Route(
            name=name,
            kind="choice",
            targets=[
                RouteTarget(
                    # The hash of the options: with other options the policy chooses among something
                    # else.
                    version=f"{CONFIGURED}{sha256(choice.model_dump_json().encode()).hexdigest()[:12]}"
                )
            ],
            choice=choice,
            reason="configuration",
        )
        for name, choice in settings.choices.items()
    ]


def _serves_learned(route: Route) -> bool:
    """Return whether a route leads to a version that is not from the configuration."""
    return any(not target.version.startswith(CONFIGURED) for target in route.targets)


def _target(endpoint: Endpoint) -> RouteTarget:
    return RouteTarget(version=f"{CONFIGURED}{endpoint.model}", endpoint=endpoint)
