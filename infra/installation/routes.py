"""The first routes of an installation: configured models, simulated ones, and the baseline of each
policy.
"""

from hashlib import sha256

from research_society.simulator.app import MODEL

from infra.config.settings import Settings
from infra.gateway.settings import ModelSettings
from infra.installation.log import open_log
from infra.runtime.errors import ConfigError
from schemas.endpoints import Endpoint
from schemas.routes import Route, RouteEvent, RouteTarget
from schemas.topics import ROUTES
from streams.processors.promotion import baseline_route
from streams.storage.records import Outgoing
from streams.views.follower import read_views
from streams.views.routes import Routes

CONFIGURED = "configured:"
RANDOM_POLICY = "random-policy"
"""A policy that is never learned: the uniform baseline, to compare with."""


def publish_initial_routes(settings: Settings, simulator_url: str | None) -> None:
    """Write the routes that the configuration asks for, where the log does not say so already.

    What was promoted or is on trial keeps its route, and so does whatever a person holds: the
    configuration only says where it begins.

    Args:
        simulator_url: what plays the models that have no endpoint; None when none does.

    Raises:
        ConfigError: a model has no endpoint and no simulator plays it.
    """
    if simulator_url is None and settings.simulated_models:
        missing = ", ".join(settings.simulated_models)
        raise ConfigError(
            f"no endpoint for {missing}; set models.NAME.base_url and models.NAME.model"
        )
    with open_log(settings) as log:
        routes = Routes()
        read_views(log, routes)
        served = routes.current
        wanted = [*_model_routes(settings, simulator_url), *_choice_routes(settings)]
        wanted += [
            baseline_route(name)
            for name in (*settings.policies, RANDOM_POLICY)
            if name not in served
        ]
        held = {name for name, route in served.items() if route.held or _learned(route)}
        following = [route.succeeding(served.get(route.name)) for route in wanted]
        changed = [
            route
            for route in following
            if route.name not in held and served.get(route.name) != route
        ]
        log.append(
            [
                Outgoing.of(ROUTES, route.name, RouteEvent(payload=route)).record()
                for route in changed
            ]
        )


def _model_routes(settings: Settings, simulator_url: str | None) -> list[Route]:
    models = dict(settings.models)
    if simulator_url is not None:
        simulated = ModelSettings(base_url=f"{simulator_url}/v1", model=MODEL)
        models |= dict.fromkeys(settings.simulated_models, simulated)
    return [
        Route(
            name=name,
            kind="model",
            targets=[_target(model.endpoint())],
            fallbacks=[_target(endpoint) for endpoint in model.fallbacks],
            reason="configuration",
        )
        for name, model in models.items()
    ]


def _choice_routes(settings: Settings) -> list[Route]:
    return [
        Route(
            name=name,
            kind="choice",
            targets=[
                RouteTarget(
                    version=f"{CONFIGURED}{sha256(choice.model_dump_json().encode()).hexdigest()[:12]}"
                )
            ],
            choice=choice,
            reason="configuration",
        )
        for name, choice in settings.choices.items()
    ]


def _learned(route: Route) -> bool:
    """Return whether a version serves that the configuration does not name."""
    return any(not target.version.startswith(CONFIGURED) for target in route.targets)


def _target(endpoint: Endpoint) -> RouteTarget:
    return RouteTarget(version=f"{CONFIGURED}{endpoint.model}", endpoint=endpoint)
