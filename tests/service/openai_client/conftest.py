"""OpenAI's own client against the service, with strict validation of every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import OpenAI

from tests.service.conftest import Api, add_dataset
from tests.service.test_access import served_with_keys as served_with_keys

if TYPE_CHECKING:
    from collections.abc import Iterator


def connected(api: Api, secret: str = "none") -> OpenAI:
    return OpenAI(base_url=f"{api.client.base_url}/v1", api_key=secret, _strict_response_validation=True)


@pytest.fixture
def client(api: Api) -> Iterator[OpenAI]:
    with connected(api) as client:
        yield client


@pytest.fixture
def live_client(live: Api) -> Iterator[OpenAI]:
    """On each database."""
    with connected(live) as client:
        yield client


@pytest.fixture
def dataset(api: Api) -> str:
    return add_dataset(api.database)


def refused(error: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[str | None, str | None]:
    """Where and what is wrong, as the client's error has it."""
    body: Any = error.value.response.json()
    assert error.value.code == body["code"]
    assert error.value.type == "invalid_request_error"
    return error.value.param, body["errors"][0]["code"]
