"""Shadows: copies of calls for versions on trial. Nobody sees their answers."""

import asyncio

import aiohttp

from infra.gateway.calls.faults import fault_of_call
from infra.gateway.calls.model_call import Ending, ModelCall
from infra.gateway.http.context import CallContext
from infra.gateway.http.documents import Body
from infra.gateway.http.problems import ProblemError
from infra.gateway.models.servers import UpstreamError
from infra.gateway.routes.targets import LoadedRoute, Target, unit_draw
from infra.gateway.state.services import Services
from schemas.rollouts import Rollout, RolloutEvent, RolloutState
from schemas.topics import ROLLOUTS


def send_shadows(services: Services, route: LoadedRoute, model_call: ModelCall) -> None:
    """Send copies of a call to the route's shadows, each to its share of calls.

    A copy is a rollout of its own. Its split is `test`, so no learner learns from it.
    """
    for shadow in route.shadows:
        if unit_draw(route.name, shadow.version, model_call.call.span_id) < shadow.weight:
            copy = _copy_of(services, shadow, route.name, model_call)
            # Shadows are dropped first when there is much to do: nobody waits for them.
            if not services.in_background(copy):
                services.counts.shadows["skipped"] += 1


async def _copy_of(services: Services, shadow: Target, name: str, original: ModelCall) -> None:
    call = original.call
    rollout_id = f"shadow/{shadow.version}/{call.span_id}"
    group = f"shadow:{shadow.version}"
    document = await original.document.changed(_without_stream)
    copy = ModelCall(
        original.api, call, rollout_id, group, original.model, document, shadow, "test"
    )
    services.routing.begin(copy.key, group, "test", assigned=(name,))
    begun = Rollout(
        state=RolloutState.STARTED,
        agent="shadow",
        split="test",
        group=group,
        checkpoints={name: shadow.version},
        assigned={name: shadow.version},
    )
    services.record(ROLLOUTS, _rollout_event(call, rollout_id, begun))
    error: str | None = None
    status: int | None = None
    ending = Ending()
    try:
        # Uncompressed, because the answer is read here and not passed on.
        headers = {"content-type": "application/json", "accept-encoding": "identity"}
        reply = await services.upstreams.ask((shadow,), original.api.path, document, headers)
        status, copy.attempts = reply.response.status, reply.attempts
        try:
            ending = await copy.read(await reply.response.read(), services.readers)
        finally:
            reply.close()
        error = None if status < 400 else f"status {status}"
    except (UpstreamError, ProblemError, aiohttp.ClientError, TimeoutError, OSError) as failure:
        error = str(failure)
    except asyncio.CancelledError:
        error = "cancelled"
        raise
    finally:
        wrong = error or ending.damaged
        copy.record(services, status, wrong)
        failed = wrong is not None
        services.counts.shadows["failed" if failed else "answered"] += 1
        ended = Rollout(
            state=RolloutState.FAILED if failed else RolloutState.SUCCEEDED,
            error=wrong,
            fault=fault_of_call(status, wrong) if wrong is not None else None,
            turns=1,
            recorded=services.routing.recorded(copy.key),
        )
        services.record(ROLLOUTS, _rollout_event(call, rollout_id, ended))
        services.routing.release(copy.key)


def _without_stream(body: Body) -> Body:
    """Return a request that does not stream: nobody reads along."""
    return {name: body[name] for name in body if name not in ("stream", "stream_options")}


def _rollout_event(call: CallContext, rollout_id: str, rollout: Rollout) -> RolloutEvent:
    return RolloutEvent(
        tenant=call.caller.tenant, rollout_id=rollout_id, trace_id=call.trace_id, payload=rollout
    )
