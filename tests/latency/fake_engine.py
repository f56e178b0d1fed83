"""An engine whose time is made."""

from fastnas.latency.engines import environment


class FakeEngine:
    """A run takes 1 ms of the machine's time, times `load`; the clock moves only when something runs."""

    name, version, precision, load = "fake", "1", "fp32", 1.0

    def __init__(self):
        self.now = 0.0

    def environment(self):
        return environment(self, {"device": "fake", "device_id": ""}, 1, {})

    def clock(self):
        return self.now

    def prepare(self, workload):
        def run():
            self.now += 0.001 * FakeEngine.load

        return type("Runner", (), {"run": staticmethod(run)})
