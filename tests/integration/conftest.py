from collections.abc import Iterator

import pytest
from openai import OpenAI

from tests.support.service import Service, demo_args, deployed


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    """The one service of the session: real Ray, real vLLM."""
    with deployed(demo_args()) as running:
        yield running


@pytest.fixture(scope="session")
def client(service: Service) -> OpenAI:
    return OpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0)
