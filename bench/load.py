"""The mail that scenarios are loaded with, and where it goes."""


def destinations(count: int, port: int) -> dict[str, str]:
    """Domains and where they go: each to an address of its own, so that none shares a session."""
    return {
        f"d{number}.example": f"smtp:[127.0.{number // 250}.{number % 250 + 2}]:{port}"
        for number in range(count)
    }


def message(number: int, size: int) -> bytes:
    """A message of `size` octets with CRLF line ends, in lines as people write them."""
    head = (
        f"From: load@source.example\r\nTo: user@d.example\r\nSubject: number {number}\r\n"
        f"Message-ID: <{number}@source.example>\r\n\r\n"
    ).encode()
    line = b"The quick brown fox jumps over the lazy dog, and back again.\r\n"
    body = line * (max(0, size - len(head)) // len(line) + 1)
    return head + body[: max(0, size - len(head) - 2)].rstrip(b"\r") + b"\r\n"
