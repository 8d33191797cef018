"""A source of mail: loads an SMTP or LMTP server and says what it made of it. See `command.py`."""
