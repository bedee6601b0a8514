"""The data readers: importing this package registers them."""

from lapbench.data.digits import read_digits

__all__ = ["read_digits"]
