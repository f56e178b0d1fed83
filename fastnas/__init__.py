"""fastnas: finds object-detector architectures for your data on your device.

Importing the package is cheap: torch is loaded by the parts that need it (`fastnas.ops`, `fastnas.models`, `fastnas.train`),
never by `fastnas.blueprint` and `fastnas.spaces`.
"""

__version__ = "0.1.0"
