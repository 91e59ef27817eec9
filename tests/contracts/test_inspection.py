"""The name of the built-in bundle."""

from pathlib import Path

import pytest

from refdiff.contracts import inspection
from refdiff.contracts.inspection import BUILT_IN
from refdiff.errors import BundleError


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_built_in_bundle_is_named_mini(
    name: str, monkeypatch: pytest.MonkeyPatch, tiny_bundle: Path
) -> None:
    monkeypatch.setattr("refdiff.contracts.inspection._built_in_path", lambda: tiny_bundle)
    assert inspection.inspect(name).path == tiny_bundle


def test_an_installation_without_the_built_in_bundle_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("refdiff.contracts.inspection.resources.files", lambda package: tmp_path)
    with pytest.raises(BundleError, match="built-in bundle is not in this installation"):
        inspection.inspect("mini")
