"""Names from outside become single, portable file names."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tablet_hf.files import safe_name


@given(st.text(max_size=300) | st.text("./\\:*\x00 CONaux1-", max_size=12))
def test_safe_names_are_single_parts_of_paths(text):
    name = safe_name(text)
    assert Path("out", name).resolve().parent == Path("out").resolve()
    assert name
    assert not set(name) & set('<>:"/\\|?*\x00\n')
    assert not name.startswith(".")
    assert not name.endswith((".", " "))
    assert name.split(".")[0].upper() not in ("CON", "NUL", "AUX")
    assert len(name.encode()) <= 100
    assert safe_name(name) == name


def test_safe_names_stay_as_they_are_and_others_stay_different():
    for name in ("fold-1", "site-Oxford", "my split", "größe", "a.b"):
        assert safe_name(name) == name
    texts = ["", ".", "..", "/abs/victim", "../../evil", "a/b", "a\\b", "a:b", "nul", "NUL.txt", "x" * 200, "x" * 201]
    assert len({safe_name(text) for text in texts}) == len(texts)
