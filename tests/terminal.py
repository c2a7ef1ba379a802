"""Runs `aavae watch` in a pseudo-terminal: keys, signals and a terminal that is closed end it, it follows what is written, and the
terminal is as before.

python3 tests/terminal.py AAVAE RUN        RUN is trained, not evaluated; its logs are added to
"""

import json
import os
import pathlib
import pty
import select
import signal
import struct
import sys
import time

ENTER, LEAVE, HIDE, SHOW = b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?25l", b"\x1b[?25h"
PATIENCE = 60


class Watch:
    def __init__(self, colours):
        self.out, self.started = b"", time.time()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            import fcntl
            import termios

            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
            os.environ.update(TERM="xterm-256color", COLORTERM=colours)
            os.environ.pop("NO_COLOR", None)
            os.execv(sys.argv[1], [sys.argv[1], "watch", sys.argv[2], "--every", "0.1"])

    def read(self):
        """False at the end."""
        assert time.time() - self.started < PATIENCE, f"nothing happens: {self.out[-2000:]}"
        if not select.select([self.fd], [], [], 0.1)[0]:
            return True
        try:
            more = os.read(self.fd, 1 << 16)
        except OSError:  # Linux's end of a pseudo-terminal
            more = b""
        self.out += more
        return bool(more)

    def until(self, text):
        while text not in self.out:
            assert self.read(), f"ended without {text}: {self.out[-2000:]}"
        return self

    def ends(self, code):
        while self.read():
            pass
        status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        assert status == code, f"exit code {status}, not {code}: {self.out[-2000:]}"
        assert self.out.count(ENTER) == 1 and self.out.find(ENTER) < self.out.rfind(
            LEAVE
        ), "the screen is not given back"
        assert self.out.rfind(SHOW) > self.out.rfind(HIDE), "the cursor stays hidden"
        return self.out


def main():
    for key in (b"q", b"\x1b", b"\x03"):
        watch = Watch("truecolor").until(b"leaves")
        os.write(watch.fd, key)
        out = watch.ends(0)
        assert "▀".encode() in out, "no reconstruction"
        assert (
            b"not evaluated so far" in out[out.rfind(LEAVE) :]
        ), "what was shown last does not stay as text"
    watch = Watch("").until(b"COLORTERM does not say truecolor").until(b"leaves")
    os.kill(watch.pid, signal.SIGTERM)
    assert "▀".encode() not in watch.ends(143)

    # A terminal that is closed, as its window is: the program ends, whatever it was doing.
    watch = Watch("truecolor").until(b"leaves")
    os.close(watch.fd)
    while os.waitpid(watch.pid, os.WNOHANG) == (0, 0):
        if time.time() - watch.started > PATIENCE:
            os.kill(watch.pid, signal.SIGKILL)
            raise AssertionError("it goes on without its terminal")
        time.sleep(0.05)

    run = pathlib.Path(sys.argv[2])
    watch = Watch("truecolor").until(b"leaves")
    with open(run / "metrics.jsonl", "a") as f:
        f.write('{"step":77,"epoch":9,"split":"train","loss":1.0}\n')
    watch.until(b"77/")
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(
        json.dumps({**summary, "steps": 77, "probe": {"accuracy": 0.625, "epochs": 4}})
    )
    out = watch.ends(0)
    assert b"evaluated: step 77/" in out[out.rfind(LEAVE) :] and b"probe 0.6250" in out, out[-2000:]


if __name__ == "__main__":
    main()
