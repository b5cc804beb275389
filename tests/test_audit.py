"""The audit of pinned releases: a real process that asks a real server, which speaks PyPI's format."""

import http.server
import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

AUDIT = Path(__file__).with_name("audit.py")
KNOWN = {
    "/pypi/good/1.0/json": [],
    "/pypi/bad/2.1/json": [{"id": "PYSEC-1", "aliases": ["CVE-2"], "fixed_in": ["2.2"], "withdrawn": None}],
    "/pypi/old/3/json": [{"id": "PYSEC-3", "aliases": [], "fixed_in": [], "withdrawn": "2024-01-01"}],
}


class PyPI(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = KNOWN.get(self.path)
        self.send_response(404 if known is None else 200)
        self.end_headers()
        if known is not None:
            self.wfile.write(json.dumps({"info": {}, "vulnerabilities": known}).encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def service():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), PyPI) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def audit(tmp_path):
    def call(pins, service):
        (tmp_path / "pins.txt").write_text(f"# made by hand\n{pins}\n")
        command = [sys.executable, str(AUDIT), str(tmp_path / "pins.txt"), service]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    return call


def test_releases_without_known_vulnerabilities_are_fine(audit, service):
    assert audit("good==1.0\nold==3", service) == (0, "no vulnerability of 2 releases is known\n", "")


def test_a_vulnerable_release_is_named_with_its_fix(audit, service):
    assert audit("good==1.0\nbad==2.1", service) == (1, "bad 2.1: PYSEC-1, CVE-2, fixed in 2.2\n", "")


def test_a_release_that_the_service_does_not_know_is_no_clean_bill(audit, service):
    status, out, err = audit("good==1.0\nnosuch==1", service)
    assert (status, out) == (2, "") and err.count("\n") == 1 and "1 of 2 releases" in err and "404" in err
    assert audit("bad==2.1\nnosuch==1", service)[0] == 1  # what is known counts


def test_a_service_out_of_reach_is_said_in_one_line(audit):
    status, out, err = audit("good==1.0", "http://127.0.0.1:9")
    assert (status, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: http://127.0.0.1:9 cannot be reached for vulnerabilities: 1 of 1 releases")


def test_a_file_without_pins_is_refused(audit, service):
    assert audit("good>=1.0", service)[0] == 2
