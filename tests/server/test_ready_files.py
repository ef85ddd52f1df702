"""The ready file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepmcat_core.errors import ConfigError
from deepmcat_server import ready_files
from deepmcat_server.addresses import Address


def test_a_ready_file_says_where(tmp_path: Path):
    """The file has both addresses, replaces one of an earlier server, and nothing else is left beside it."""
    path = tmp_path / "ready.json"
    path.write_text("of a server before")
    ready_files.clear(path)
    assert not path.exists()
    ready_files.write(path, listen=Address("127.0.0.1", 1), admin=Address("::1", 2))
    assert json.loads(path.read_text()) == {"listen": "127.0.0.1:1", "admin": "[::1]:2"}
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path: Path):
    """A folder that does not exist is a ConfigError that names the file."""
    with pytest.raises(ConfigError, match=r"ready\.json"):
        ready_files.write(tmp_path / "none" / "ready.json", listen=Address("a", 1), admin=Address("b", 2))
