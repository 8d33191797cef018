"""An SMTP and LMTP sink: it takes mail and throws it away, or treats it as it is told to.

Start reading at `session.py`, the dialogue. What surrounds it: listeners and what they are told
(`listen.py`, `behaviour.py`, `words.py`, `scenario_file.py`), two lanes that carry octets between
sockets and sessions (`plain_lane.py`, `trio_lane.py`), and the command (`command.py`).
"""
