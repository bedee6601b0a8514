"""The data readers: importing this package registers them."""

from lapbench.data.digits import read_digits
from lapbench.data.readers.deeppcb import read_deeppcb

__all__ = ["read_deeppcb", "read_digits"]
