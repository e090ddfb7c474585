"""Where the API listens, and what of it is written down."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from haulier.errors import Refused
from haulier.settings import Settings
from haulier.stack.web import listen, note_url, web_url


def test_any_port_will_do_unless_one_is_asked_for(tmp_path: Path) -> None:
    """The usual one may belong to another stack of this machine."""
    usual = Settings(state=tmp_path)
    with closing(listen(usual)), closing(listen(usual)) as second:
        port = second.getsockname()[1]
        with pytest.raises(Refused) as refused:
            listen(Settings(state=tmp_path, web_port=port))
    assert refused.value.code == "web_port_taken"
    assert "in use" in refused.value.problem.message


@pytest.mark.parametrize(
    ("address", "url"),
    [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:")],  # noqa: S104 - that is the test
)
def test_url_is_one_of_this_machine(tmp_path: Path, address: str, url: str) -> None:
    settings = Settings(state=tmp_path / "state", web_address=address, web_port=0)
    with closing(listen(settings)) as listener:
        found = note_url(settings, listener)
        assert found == f"{url}{listener.getsockname()[1]}"
        assert (settings.state / "web.url").read_text() == f"{found}\n"
    assert web_url(settings) is None, "nobody answers there any more"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"web_address": "nowhere.invalid"}, "bad_address"),
        ({"web_address": "a..b"}, "web_port_taken"),
        ({"web_address": "192.0.2.1"}, "web_port_taken"),
        ({"web_certificate": Path("/x")}, "bad_setting"),
        ({"web_certificate": Path("/x"), "web_key": Path("/y")}, "bad_setting"),
    ],
)
def test_what_cannot_be_listened_on_is_refused(tmp_path: Path, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(Refused) as refused:
        listen(Settings(state=tmp_path, web_port=0, **{} | changes))
    assert refused.value.code == code
