import sys
from pathlib import Path

import pytest

from refdiff.contracts.bundle import open_bundle
from refdiff.contracts.user_folders import cache_folder, state_folder
from refdiff.engines.trt.plans import has_plans
from refdiff.engines.trt.trust import is_trusted, record_trust
from refdiff.errors import InputError


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the system does not know."""
    for name in ("HOME", "USERPROFILE", "HOMEDRIVE", "HOMEPATH", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pwd", None)


def test_the_folders_are_those_of_the_user(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/ada")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", "/var/ada")
    assert cache_folder() == Path("/home/ada/.cache/refdiff")
    assert state_folder() == Path("/var/ada/refdiff")


@pytest.mark.usefixtures("homeless")
def test_without_a_home_folder_the_message_names_the_variable(mini_bundle: Path):
    with pytest.raises(InputError, match="no home folder; set XDG_CACHE_HOME to a folder"):
        cache_folder()
    with pytest.raises(InputError, match="no home folder; set XDG_STATE_HOME to a folder"):
        record_trust("0" * 64)
    assert not is_trusted("0" * 64)
    assert not has_plans(open_bundle(mini_bundle), "tensorrt")


def test_folders_that_cannot_be_read_hold_no_plans(mini_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, "/" + "x" * 300)  # refused to root as well, as another user's is not
    assert not is_trusted("0" * 64)
    assert not has_plans(open_bundle(mini_bundle), "tensorrt")
