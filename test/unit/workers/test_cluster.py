"""A Ray of the run's own that ends; Ray is a stand-in, its keeper is not."""

import sys
from types import SimpleNamespace

import pytest

from self_ensemble.workers import cluster


class StandInRay:
    def __init__(self):
        self.connected = False
        self.begun = 0

    def init(self, address, **settings):
        self.connected = True
        self.begun += 1

    def shutdown(self):
        self.connected = False

    def is_initialized(self):
        return self.connected

    def nodes(self):
        return [{"Resources": {"CPU": 2.0}, "Alive": True}]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError, None])
def test_the_next_run_starts_another(monkeypatch, error):
    """In a notebook, where the process goes on after Ctrl-C: it would join what is dead."""
    ray = StandInRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    config = SimpleNamespace(Config=SimpleNamespace(initialize=lambda text: None))
    monkeypatch.setitem(sys.modules, "ray._raylet", config)
    if error is not None:
        with pytest.raises(error), cluster.connected(None):
            raise error
    for _ in range(2):
        with cluster.connected(None) as found:
            assert found.is_local and ray.connected
        assert not ray.connected
    assert ray.begun == (2 if error is None else 3)
