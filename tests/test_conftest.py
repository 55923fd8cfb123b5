"""What other tests lean on."""

from pathlib import Path

import pytest


def test_real_data_lie_where_the_environment_says(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("TABLET_SHARED_DATA", str(tmp_path))
    (tmp_path / "bold").mkdir()
    assert real_data("bold") == tmp_path / "bold"
    with pytest.raises(pytest.skip.Exception, match=r"no abide.*TABLET_SHARED_DATA"):
        real_data("abide")


@pytest.mark.parametrize("nothing", [None, ""])
def test_else_beside_the_repository(real_data, monkeypatch, nothing):
    monkeypatch.delenv("TABLET_SHARED_DATA", raising=False)
    if nothing is not None:
        monkeypatch.setenv("TABLET_SHARED_DATA", nothing)
    folder = Path(__file__).parents[2] / "shared" / "data"
    if (folder / "bold").exists():
        assert real_data("bold") == folder / "bold"
    with pytest.raises(pytest.skip.Exception, match="shared/data"):
        real_data("nothing")
