"""What `--json` prints, compared with the type of a command's result."""

from typing import TypeVar

from quadranas.validation import CommandResult
from tests.command_line import Outcome

Result = TypeVar("Result", bound=CommandResult)


def parsed(outcome: Outcome, result: type[Result]) -> Result:
    """The printed result; every value has the type of its field, and none is lost."""
    assert outcome.code == 0, outcome.err
    found = result.model_validate_json(outcome.out, strict=True)
    assert found.model_dump(mode="json") == outcome.json()
    assert list(found.model_dump(mode="json")) == list(outcome.json())
    return found
