"""What-if runs: the bandit learns history again, with another reward or another configuration.

Two methods estimate the result. Off-policy evaluation (`learners.evaluation`): policies learned
from the training decisions are evaluated on the held-out ones. The replay method (Li, Chu, Langford
& Wang, WSDM 2011): a learner goes through decisions of the uniform baseline. Where it makes the
logged choice, it sees the reward. The mean of these rewards is an unbiased estimate of its live
reward.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from learners.bandit import BanditConfig, BanditLearner, BanditPolicy
from learners.bandit.worth import earned
from learners.contract import Policy, distribution
from learners.logged import Logged
from learners.policies import UNIFORM_VERSION
from schemas.examples import BanditExample, Example, ExampleEvent

RewardFunction = Callable[[Example], float | None]
"""Returns another reward in [0, 1] for an example, or None to leave the example out."""


class RewardFunctionError(ValueError):
    """A reward function raised an error, or did not return a number in [0, 1]."""


@dataclass(frozen=True)
class Refitted:
    """A policy after some of the examples of history."""

    examples: int
    policy: BanditPolicy


@dataclass(frozen=True)
class Replayed:
    """The result of the replay method.

    Attributes:
        shown: number of uniform decisions that the learner went through.
        rewards: rewards of the decisions where the learner made the logged choice, in order.
    """

    shown: int
    rewards: list[float]


def with_rewards_of(
    events: Iterable[ExampleEvent], reward: RewardFunction | None
) -> list[ExampleEvent]:
    """Return the bandit's examples with the rewards of a function, or with their own if there is
    no function.

    A corrected example is returned once, as it was sent last, in the place where it was sent first.
    A retracted one is left out. So a learner learns history as if every reward had been right at
    once.

    Raises:
        RewardFunctionError: the function raised an error, or did not return a number in [0, 1].
    """
    newest: dict[str, ExampleEvent] = {}
    for event in events:
        if isinstance(event.payload.body, BanditExample):
            newest[event.payload.body.decision_id] = event
    found = []
    for event in newest.values():
        # As if it were the first: a learner that sees a correction would look for what it replaces.
        example = event.payload.model_copy(update={"reward_revision": 1, "replaces": None})
        event = event.model_copy(update={"payload": example})
        if example.retracted:
            continue
        if reward is not None:
            value = _new_reward(reward, example)
            if value is None:
                continue
            event = event.model_copy(
                update={"payload": example.model_copy(update={"reward": value, "criteria": {}})}
            )
        found.append(event)
    return found


def _new_reward(reward: RewardFunction, example: Example) -> float | None:
    try:
        value = reward(example)
    except Exception as error:  # the function is the user's and may raise anything
        raise RewardFunctionError(
            f"the reward function raised {type(error).__name__}: {error}"
        ) from error
    if value is None:
        return None
    if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise RewardFunctionError(
            f"the reward function returned {value!r}; it must be a number from 0 to 1, or None"
        )
    return float(value)


def refit(learner: BanditLearner, events: Sequence[ExampleEvent], points: int) -> list[Refitted]:
    """Return the policies of a learner after `points` equal parts of the events; the last is after
    all.
    """
    state, found = learner.initial(), []
    stops = {round(len(events) * number / points) for number in range(1, points + 1)}
    for number, event in enumerate(events, start=1):
        state = learner.fold(state, event)
        if number in stops and state.examples > 0:
            found.append(Refitted(state.examples, learner.policy(state)))
    return found


def held_out(events: Iterable[ExampleEvent], config: BanditConfig) -> list[Logged]:
    """Return the decisions on held-out tasks, each with its newest reward."""
    newest: dict[str, Logged] = {}
    for event in events:
        body = event.payload.body
        if event.payload.split != "train" and isinstance(body, BanditExample):
            newest[body.decision_id] = Logged(
                body.decision, earned(event.payload, config), event.rollout_key
            )
            if event.payload.retracted:
                del newest[body.decision_id]
    return list(newest.values())


def weighted_mean(policy: Policy, log: Sequence[Logged]) -> float:
    """Return the self-normalised importance-weighted mean reward of a policy.

    It is 0 if the policy would make none of the logged choices.
    """
    weights = [
        distribution(policy, item.decision)[item.decision.choice] / item.decision.propensity
        for item in log
    ]
    total = sum(weights)
    return (
        sum(w * item.reward for w, item in zip(weights, log, strict=True)) / total
        if total > 0
        else 0.0
    )


def run_replay_method(
    learner: BanditLearner, events: Iterable[ExampleEvent], seed: int
) -> Replayed:
    """Run the replay method on the decisions of the uniform baseline."""
    # Random numbers of a simulation need not be unpredictable.
    random, state, shown = Random(seed), learner.initial(), 0  # noqa: S311
    rewards: list[float] = []
    for event in events:
        example = event.payload
        if not isinstance(example.body, BanditExample) or example.reward_revision > 1:
            continue
        decision = example.body.decision
        # The method is unbiased only where every candidate had the same probability.
        if decision.policy_version != UNIFORM_VERSION:
            continue
        shown += 1
        # The policy of this moment, before the decision is learned.
        chances = distribution(learner.policy(state), decision)
        if random.choices(range(len(chances)), chances)[0] == decision.choice:
            rewards.append(earned(example, learner.config))
            taught = event.model_copy(
                update={"payload": example.model_copy(update={"split": "train"})}
            )
            state = learner.fold(state, taught)
    return Replayed(shown, rewards)
