"""What every test may ask for: the notebooks' folder and the real sample files."""
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path: return ROOT


@pytest.fixture(scope="session")
def samples() -> Path:
    "The folder of real sample files, named by AVBOOK_SAMPLES; a test that needs it is skipped without it."
    folder = os.environ.get("AVBOOK_SAMPLES")
    if not folder: pytest.skip("AVBOOK_SAMPLES is not set: the real sample files are not here")
    return Path(folder)
