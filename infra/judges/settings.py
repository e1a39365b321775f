"""Settings of the judge."""

from pydantic import SecretStr

from infra.runtime.section import Section


class JudgeSettings(Section):
    """The judge.

    Attributes:
        model: logical model that scores the six criteria; None measures instead (see
            `research_society.rewards`).
        api_key: of the gateway, where it asks for one; needs the scope `agent`.
    """

    model: str | None = None
    api_key: SecretStr | None = None
