"""The faults of `tests/mutations.py`: each can be planted; that each is noticed, the slow suite shows."""

import pytest

from tests import mutations


@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.what)
def test_mutations_can_be_planted(fault):
    file = mutations.ROOT / fault.file
    if not (mutations.ROOT / "pyproject.toml").exists():
        pytest.skip("not a source tree")
    assert file.read_text(encoding="utf-8").count(fault.old) == 1
    assert fault.new != fault.old
    for near in fault.near:
        assert (mutations.ROOT / near).exists()


def test_mutations_are_at_least_forty():
    assert len({fault.what for fault in mutations.FAULTS}) == len(mutations.FAULTS) >= 40


@pytest.mark.slow
@pytest.mark.parametrize("fault", mutations.FAULTS, ids=lambda fault: fault.what)
def test_mutations_are_noticed(fault):
    assert mutations.plant(fault, whole=True)
