"""Two models and tokenised pairs in two groups."""

from __future__ import annotations

from typing import Any

import pytest
from making import make_model, make_rows

from alignlab.data import prepare


@pytest.fixture(scope="module")
def policy() -> Any:
    return make_model(0)


@pytest.fixture(scope="module")
def other() -> Any:
    return make_model(1)


@pytest.fixture(scope="module")
def dataset(tokenizer: Any) -> Any:
    return prepare(make_rows(7, groups=("a", "b")), tokenizer, progress=False).dataset
