"""Learners that settings name: loaded, checked, and put beside the bandit."""

import inspect
from collections.abc import Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from learners.contract import Learner, PolicyType
from learners.policies import PolicyLoader
from learners.references import CLASS, FOREIGN_ERRORS, one_line, resolve
from schemas.envelope import Name
from schemas.serialization import readable

ARGUMENTS = {"initial": 0, "fold": 2, "examples": 1, "checkpoint": 1, "encode": 1, "decode": 1}
"""Methods of a learner, and how many arguments each takes (see `learners.contract.Learner`)."""


class NotALearnerError(ValueError):
    """A class that settings name is no learner; the message says what is wrong with it."""


class LearnerSettings(BaseModel):
    """A learner of the user's. All other keys are settings of its own.

    The class is called with a target and its settings: with one object, where it names a pydantic
    model `Config`; else with keyword arguments.

    Attributes:
        reference: class of the learner, as `module:Class`; in files its name is `class`.
        target: logical name of the policy that it learns.
        targets: more of them, each with a learner of its own.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    reference: str = Field(alias="class")
    target: Name | None = None
    targets: tuple[Name, ...] = ()

    @property
    def learned(self) -> tuple[str, ...]:
        """All its targets."""
        return tuple(dict.fromkeys([*([self.target] if self.target else []), *self.targets]))

    @model_validator(mode="after")
    def _buildable(self) -> Self:
        """Build the learners once, so that a wrong class stops the start and not a process."""
        if not self.learned:
            raise ValueError(f"{self.reference} needs target = NAME, the policy that it learns")
        PolicyLoader(learner.policy_type for learner in self.build())
        return self

    def build(self) -> list[Learner[Any]]:
        """Return a learner for each target.

        Raises:
            ValueError: there is no such class, it does not take these settings, or it is no
                learner.
        """
        made = resolve(self.reference, CLASS)
        return [self._learner(made, target) for target in self.learned]

    def _learner(self, made: Any, target: str) -> Learner[Any]:
        """Return a learner that has what the contract asks for."""
        try:
            learner = self._instance(made, target)
            _check_parts(self.reference, learner)
            _check_state(self.reference, learner)
        except NotALearnerError:
            raise
        except ValidationError as error:
            raise ValueError(f"{self.reference}: {readable(error, '')}") from error
        except FOREIGN_ERRORS as error:  # the class is somebody else's code
            raise ValueError(f"{self.reference}: {one_line(error)}") from error
        if learner.target != target:
            raise NotALearnerError(
                f"{self.reference} is no learner of {target}: its target is {learner.target!r}"
            )
        checked: Learner[Any] = learner
        return checked

    def _instance(self, made: Any, target: str) -> Any:
        own = self.model_extra or {}
        config = getattr(made, "Config", None)
        if isinstance(config, type) and issubclass(config, BaseModel):
            return made(target, config.model_validate(own))
        return made(target, **own)


def _check_parts(reference: str, learner: Any) -> None:
    for name in ("identity", "target", "config_sha256"):
        value = getattr(learner, name, None)
        if not isinstance(value, str) or not value:
            raise NotALearnerError(
                f"{reference} is no learner: its {name} is {value!r}, not a text"
            )
    for name, count in ARGUMENTS.items():
        _check_method(reference, learner, name, count)
    policy_type: PolicyType | None = getattr(learner, "policy_type", None)
    if not isinstance(getattr(policy_type, "media_type", None), str):
        raise NotALearnerError(f"{reference} is no learner: its policy_type names no media_type")
    _check_method(f"{reference}.policy_type", policy_type, "load", 1)


def _check_state(reference: str, learner: Any) -> None:
    """Check the state before any example. What fails here would fail with the first example."""
    state = learner.initial()
    content = learner.encode(state)
    if not isinstance(content, bytes):
        raise NotALearnerError(
            f"{reference} is no learner: encode gives {type(content).__name__}, not bytes"
        )
    # Encoded twice, and once more after decoding: a set or a dictionary may have no fixed order.
    if not content == learner.encode(state) == learner.encode(learner.decode(content)):
        raise NotALearnerError(
            f"{reference} is no learner: encode gives other bytes for the same state"
        )


def _check_method(reference: str, owner: Any, name: str, count: int) -> None:
    method = getattr(owner, name, None)
    if not callable(method):
        raise NotALearnerError(f"{reference} lacks {name}, a method of {count} arguments")
    if inspect.iscoroutinefunction(method):
        raise NotALearnerError(f"{reference}.{name} is async; it must be a plain method")
    try:
        inspect.signature(method).bind(*range(count))
    except TypeError as error:
        found = inspect.signature(method)
        raise NotALearnerError(
            f"{reference}.{name} must take {count} arguments; it is {name}{found}"
        ) from error


def policy_loader(learners: Iterable[LearnerSettings]) -> PolicyLoader:
    """Return a loader of the policies of the bandit and of these learners."""
    types = [learner.policy_type for settings in learners for learner in settings.build()]
    return PolicyLoader(types)
