"""Checks that every learner must pass, as River has them for its estimators (`river.checks`).

A learner's test is one line:

    check_learner(lambda: MyLearner("my-policy", MyLearner.Config()))

Each check folds examples of a small world with a seed: three candidates, of which one is better in
each of two contexts. A learner that fails a check would serve something else after a crash, in
replay or after a correction than it did live.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from learners.check_world import (
    CONTEXTS,
    candidates,
    changed,
    inverted,
    replaced,
    retraction,
    world,
)
from learners.contract import Learner, NewCheckpoint, chances
from schemas.decisions import Candidate
from schemas.examples import ExampleEvent, SftExample
from schemas.rollouts import Split

Make = Callable[[], Learner[Any]]
"""Makes a new learner, equal each time."""

LONG_AGO = 40
"""Place of the example that is corrected or retracted."""

LATER = 25
"""Examples between a reward and its correction or retraction. Rewards change soon or never; a
learner may forget old decisions, so that its state stays bounded.
"""

EVERY = 5
"""One of so many examples is wrong, where a learner takes rewards back approximately. Of more it
may keep a part: what it forgot meanwhile because of the wrong ones does not come back.
"""

NEAR = 0.05
"""Most by which a probability may differ where a learner takes rewards back approximately."""

SETTLED = 600
"""Examples after which a bounded state has reached its size, in this world of few words."""

TIMES = 10
"""How many times as many examples are folded then: enough to see also a slow leak, of two bytes
an example.
"""

GROWTH, SLACK = 1.2, 4096
"""A state may grow by a fifth and 4 KiB meanwhile: numbers get longer. A state that keeps every
example grows tenfold.
"""


def check_learner(make: Make) -> None:
    """Run all checks.

    Args:
        make: makes a new learner of policies, equal each time.

    Raises:
        AssertionError: a check failed; the message names it and says what differs.
    """
    for name, check in checks(make):
        try:
            check()
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        except Exception as error:  # the learner is somebody else's code
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error


def checks(make: Make) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield each check with its name, for tests that show them one by one."""
    for check in CHECKS:
        yield check.__name__, lambda check=check: check(make)  # type: ignore[misc]


def the_fold_is_deterministic(make: Make) -> None:
    """The same examples give the same bytes, and the same checkpoints."""
    first, second = (run(make(), world(make().target)) for _ in range(2))
    if first != second:
        raise AssertionError("two learners folded the same examples into different states")


def the_state_survives_its_bytes_at_every_moment(make: Make) -> None:
    """A state that is stored and read again after each example goes on as if it had not been."""
    learner = make()
    examples = world(learner.target)
    kept = learner.initial()
    stored = learner.encode(learner.initial())
    for number, example in enumerate(examples):
        kept = learner.fold(kept, example)
        # After every example: a state may lose something only at certain moments.
        stored = learner.encode(learner.fold(learner.decode(stored), example))
        if learner.encode(kept) != stored:
            raise AssertionError(
                f"after example {number} the stored state differs from the live one"
            )


def replay_equals_live(make: Make) -> None:
    """A process that starts anew in the middle announces the same checkpoints."""
    learner = make()
    examples = world(learner.target)
    _, live = run(learner, examples)
    state, half = learner.initial(), len(examples) // 2
    _, announced = run(learner, examples[:half])
    for example in examples[:half]:
        state = learner.fold(state, example)
    # A new learner, as in a new process: nothing may be kept outside of the state.
    again = make()
    _, rest = run(again, examples[half:], again.decode(learner.encode(state)))
    if announced + rest != live:
        raise AssertionError("checkpoints after a restart differ from those without one")
    if not live:
        raise AssertionError(f"nothing was announced in {len(examples)} examples")


def held_out_examples_change_nothing(make: Make) -> None:
    """Examples of the splits `validation` and `test` do not change the state."""
    learner = make()
    state = learner.initial()
    for example in world(learner.target)[:50]:
        state = learner.fold(state, example)
    before = learner.encode(state)
    splits: tuple[Split, ...] = ("validation", "test")
    for split in splits:
        for example in world(learner.target, first=1000)[:20]:
            state = learner.fold(state, changed(example, split=split))
        if learner.encode(state) != before:
            raise AssertionError(f"examples of the split {split!r} changed the state")


def a_correction_undoes_the_old_reward(make: Make) -> None:
    """What is announced after a correction is what the right reward would have taught at once.

    A learner that says `approximate` must choose nearly as it would have; one that says `none` is
    not asked.
    """
    learner = make()
    right = world(learner.target)
    if _corrections(learner) == "approximate":
        wrong = [inverted(e) if n % EVERY == 0 else e for n, e in enumerate(right)]
        corrections = [
            changed(event, reward_revision=2, replaces=replaced(inverted(event)))
            for event in right[::EVERY]
        ]
        compare_choices(learner, right, [*wrong, *corrections], "corrections")
        expect_effect(learner, wrong, corrections, "corrections")
    elif _corrections(learner) == "exact":
        wrong = list(right)
        wrong[LONG_AGO] = inverted(right[LONG_AGO])
        replaces = replaced(wrong[LONG_AGO])
        correction = changed(right[LONG_AGO], reward_revision=2, replaces=replaces)
        wrong.insert(LONG_AGO + LATER, correction)
        compare_after(learner, right, wrong, "a correction")


def a_retraction_undoes_the_example(make: Make) -> None:
    """What is announced after a retraction is what there would be without the example.

    Nearly, or not at all, if the learner says so (see `a_correction_undoes_the_old_reward`).
    """
    learner = make()
    with_it = world(learner.target)
    if _corrections(learner) == "approximate":
        count = len(with_it) // EVERY
        poison = [inverted(event) for event in world(learner.target, count, first=1000)]
        retractions = [retraction(event) for event in poison]
        compare_choices(learner, with_it, [*with_it, *poison, *retractions], "retractions")
        expect_effect(learner, [*with_it, *poison], retractions, "retractions")
    elif _corrections(learner) == "exact":
        without = [example for place, example in enumerate(with_it) if place != LONG_AGO]
        with_it.insert(LONG_AGO + LATER, retraction(with_it[LONG_AGO]))
        compare_after(learner, without, with_it, "a retraction")


def the_state_is_bounded(make: Make) -> None:
    """The state does not grow with the number of examples."""
    learner = make()
    examples = world(learner.target, TIMES * SETTLED)
    state, sizes = learner.initial(), []
    for number, example in enumerate(examples, 1):
        state = learner.fold(state, example)
        if number in (SETTLED, TIMES * SETTLED):
            sizes.append(len(learner.encode(state)))
    if sizes[1] > GROWTH * sizes[0] + SLACK:
        raise AssertionError(
            f"the state has {sizes[0]} bytes after {SETTLED} examples and {sizes[1]} after"
            f" {TIMES * SETTLED}"
        )


def checkpoints_are_what_they_say(make: Make) -> None:
    """A version names one artifact. Name, media type and number of examples are right."""
    learner = make()
    state = learner.initial()
    artifacts: dict[str, bytes] = {}
    for example in world(learner.target):
        state = learner.fold(state, example)
        found = learner.checkpoint(state)
        if found is None:
            continue
        if found.name != learner.target:
            raise AssertionError(f"a checkpoint of {learner.target} has the name {found.name}")
        if found.media_type != learner.policy_type.media_type:
            raise AssertionError(
                f"a checkpoint has the media type {found.media_type}; policy_type reads"
                f" {learner.policy_type.media_type}"
            )
        if found.examples != learner.examples(state):
            raise AssertionError(
                f"a checkpoint says {found.examples} examples, the state {learner.examples(state)}"
            )
        if artifacts.setdefault(found.version, found.artifact) != found.artifact:
            raise AssertionError(f"version {found.version} names two artifacts")


def policies_give_distributions(make: Make) -> None:
    """A policy loads from its artifact, and gives every candidate a probability above 0: also one
    that it has never seen, one alone, and one without text.
    """
    learner = make()
    _, announced = run(learner, world(learner.target))
    slates = [
        (CONTEXTS[0], candidates(0)),
        ("a context that was never seen", [Candidate(id="new", text="übermorgen"), Candidate()]),
        ("", [Candidate(id="alone", text="один")]),
        (CONTEXTS[1], [Candidate(id=str(n), text=f"choice {n}") for n in range(30)]),
    ]
    for checkpoint in announced[-2:]:
        policy = learner.policy_type.load(checkpoint.artifact)
        for context, slate in slates:
            found = chances(policy, context, slate, "default")
            if min(found) <= 0.0:
                raise AssertionError(
                    f"a candidate has the probability {min(found)}; what is never chosen is never"
                    " learned"
                )


def other_examples_are_no_error(make: Make) -> None:
    """Examples of another head, which a topic may hold, change nothing."""
    learner = make()
    state = learner.initial()
    before = learner.encode(state)
    (example,) = world(learner.target, 1)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    state = learner.fold(state, changed(example, body=SftExample(node="n", messages=messages)))
    if learner.encode(state) != before:
        raise AssertionError("a conversation changed the state of a learner of decisions")


CHECKS: Sequence[Callable[[Make], None]] = (
    the_fold_is_deterministic,
    the_state_survives_its_bytes_at_every_moment,
    replay_equals_live,
    held_out_examples_change_nothing,
    a_correction_undoes_the_old_reward,
    a_retraction_undoes_the_example,
    the_state_is_bounded,
    checkpoints_are_what_they_say,
    policies_give_distributions,
    other_examples_are_no_error,
)


def run(
    learner: Learner[Any], examples: Sequence[ExampleEvent], state: Any = None
) -> tuple[bytes, list[NewCheckpoint]]:
    """Return the state after the examples, as bytes, and what was announced on the way."""
    state = learner.initial() if state is None else state
    announced = []
    for example in examples:
        state = learner.fold(state, example)
        if (found := learner.checkpoint(state)) is not None:
            announced.append(found)
    return learner.encode(state), announced


def compare_after(
    learner: Learner[Any], right: Sequence[ExampleEvent], other: Sequence[ExampleEvent], what: str
) -> None:
    """Compare what is announced last: the artifact is what serves, so it must not differ.

    Raises:
        AssertionError: it differs.
    """
    wanted, found = _announcements(learner, right, other)
    last = {checkpoint.examples: checkpoint.artifact for checkpoint in wanted}
    after = [c for c in found[-3:] if c.examples in last]
    if not after:
        raise AssertionError(f"after {what} no checkpoint has the same number of examples")
    for checkpoint in after:
        if checkpoint.artifact != last[checkpoint.examples]:
            raise AssertionError(
                f"after {what} the checkpoint of {checkpoint.examples} examples differs"
            )


def compare_choices(
    learner: Learner[Any], right: Sequence[ExampleEvent], other: Sequence[ExampleEvent], what: str
) -> None:
    """Compare the choices of what is announced last.

    Raises:
        AssertionError: a probability differs by more than `NEAR`.
    """
    wanted, found = _announcements(learner, right, other)
    for which, context in enumerate(CONTEXTS):
        expected, chosen = (
            chances(
                learner.policy_type.load(announced[-1].artifact),
                context,
                candidates(which),
                "default",
            )
            for announced in (wanted, found)
        )
        if max(abs(p - q) for p, q in zip(expected, chosen, strict=True)) > NEAR:
            raise AssertionError(
                f"after {what} the policy chooses with {chosen}, and without them with {expected}"
            )


def _announcements(
    learner: Learner[Any], right: Sequence[ExampleEvent], other: Sequence[ExampleEvent]
) -> tuple[list[NewCheckpoint], list[NewCheckpoint]]:
    """Return what a learner announces in each of two histories.

    Raises:
        AssertionError: it announces nothing in one of them.
    """
    (_, wanted), (_, found) = run(learner, right), run(learner, other)
    if not wanted or not found:
        raise AssertionError(f"nothing was announced in {len(right)} examples")
    return wanted, found


def expect_effect(
    learner: Learner[Any], before: Sequence[ExampleEvent], after: Sequence[ExampleEvent], what: str
) -> None:
    """Expect that taking rewards back changes the state that would be without it.

    Raises:
        AssertionError: it does not.
    """
    (state, _), (changed_state, _) = run(learner, before), run(learner, [*before, *after])
    if state == changed_state:
        raise AssertionError(f"{what} change nothing, but the learner says that it takes them back")


def _corrections(learner: Learner[Any]) -> str:
    return getattr(learner, "corrections", "exact")
