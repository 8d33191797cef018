"""Where `run` and `worker` log to, and what they say if they cannot."""

import os
import socket
from pathlib import Path

import pytest

from worker.cli.daemon import ProcessLog
from worker.cli.exits import CommandError
from worker.config.config import Config
from worker.status import sinks
from worker.status.events import Noted
from worker.status.sinks import LogFormat


def test_s161_with_syslog_the_log_goes_to_the_systems_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "log")
    monkeypatch.setattr(sinks.SyslogSink.__init__, "__defaults__", (path,))
    config = Config.from_mapping({"syslog_facility": "local3"})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.settimeout(0)  # what was logged is there
        daemon.bind(path)
        log = ProcessLog(config, LogFormat.TEXT, syslog=True)
        log.writer.emit(Noted("daemon started"))
        log.writer.close()
        line = daemon.recv(1000).decode()
    assert line.startswith(f"<{19 * 8 + 6}>")  # local3, info
    assert line.endswith("daemon started")


def test_s158_without_it_the_log_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    log = ProcessLog(Config.from_mapping({}), LogFormat.TEXT)
    log.writer.emit(Noted("daemon started"))
    log.writer.close()
    assert capfd.readouterr().err.endswith("daemon started\n")


def test_a_log_file_that_cannot_be_opened_is_named_with_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "missing" / "maillog"
    with pytest.raises(CommandError, match="No such file or directory") as caught:
        ProcessLog(Config.from_mapping({"maillog_file": str(file)}), LogFormat.TEXT)
    assert str(file) in str(caught.value)
    assert caught.value.status == os.EX_CANTCREAT
