"""The nginx under test, and the rivals in it: one process, one worker for both sides.

Each part of the bench writes its configuration here from pieces, so that what differs between the two
sides is what is measured, and nothing else.
"""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
MODULE = REPOSITORY / "target/release/libngx_http_simplestreams_module.so"

HEAD = """\
{module}{user}daemon off;
pid nginx.pid;
error_log error.log notice;
worker_processes {workers};
{main}
events {{
    worker_connections 4096;
}}
http {{
{state}
    access_log off;
    client_body_temp_path client_body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    default_type application/octet-stream;
    types {{ application/json json; }}
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
{http}
}}
"""


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def certificate(directory):
    """A self-signed certificate and its key, in one directory; the paths of both."""
    crt, key = Path(directory) / "nginx.crt", Path(directory) / "nginx.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
         "-days", "30", "-keyout", key, "-out", crt, "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"],
        check=True, capture_output=True)
    return crt, key


class Nginx:
    """A running nginx in a prefix of its own; `with` ends it."""

    def __init__(self, prefix, http, workers=1, main="", module=True):
        self.prefix = Path(prefix)
        self.prefix.mkdir(parents=True, exist_ok=True)
        user = "user www-data;\n" if os.geteuid() == 0 else ""
        # Of its own, or it would begin with what an earlier run left.
        self.state = self.prefix / "simplestreams"
        state = f"    simplestreams_state_path {self.state};" if module else ""
        load = f"load_module {MODULE};\n" if module else ""
        conf = HEAD.format(module=load, user=user, workers=workers, main=main, state=state,
                           http=http)
        (self.prefix / "nginx.conf").write_text(conf)
        (self.prefix / "error.log").unlink(missing_ok=True)

    def __enter__(self):
        self.process = subprocess.Popen(
            ["nginx", "-p", f"{self.prefix}/", "-e", "error.log", "-c", self.prefix / "nginx.conf"],
            stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGQUIT)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            self.process.wait(10)

    def log(self):
        return (self.prefix / "error.log").read_text(errors="replace")

    def family(self, title):
        """Process ids of the children whose title contains `title`."""
        found = []
        for child in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children") \
                .read_text().split():
            try:
                if title in Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(int(child))
            except OSError:
                pass  # It has ended since.
        return found

    def fetch(self, port, path, gzip=False):
        """The body of an answer, as it came; None if it is not 200 or nobody listens yet."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}")
        if gzip:
            request.add_header("Accept-Encoding", "gzip")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.read()
        except OSError:
            return None

    def tag(self, port, path):
        """The entity tag of a document, for which nothing of it is sent."""
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method="HEAD")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.headers["ETag"]

    def wait_for(self, what, seconds=120):
        """The first true result of `what()`."""
        deadline = time.monotonic() + seconds
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"nginx ended:\n{self.log()}")
            result = what()
            if result:
                return result
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing after {seconds} s; nginx's log says:\n{self.log()[-4000:]}")
            time.sleep(0.005)
