"""This machine's address."""


def get_ip() -> str:
    return "192.0.2.7"
