"""A run's page while it trains: fresh, of this machine only, and nothing but the page."""

import http.client
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from quadranas.errors import QuadranasError
from quadranas.reports.watch import HOST, REFRESH_S, ReportServer
from tests.command_line import Server, call, listing, until


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path) -> Path:
    """A copy of a finished run that looks unfinished."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run, "run")
    Path("run/result.json").rename("result.json")
    return Path("run")


@pytest.fixture
def served(run: Path) -> Iterator[ReportServer]:
    with ReportServer(run) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(
    server: ReportServer, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(HOST, server.server_port, timeout=60)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer.status, dict(answer.getheaders()), body


def test_the_page_follows_the_run(run: Path, served: ReportServer) -> None:
    before = listing(run)
    code, headers, page = get(served)
    assert (code, headers["Refresh"]) == (200, str(REFRESH_S))
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Not finished: there is no result.json; the last recorded epoch is epoch 1" in page
    assert "<script" not in page
    made = served.page
    assert get(served)[2] == page
    assert served.page is made  # nothing has changed, so nothing is drawn again

    line = json.loads((run / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line | {"epoch": 7}) + "\n")
    assert "the last recorded epoch is epoch 7" in get(served)[2]

    Path("result.json").rename(run / "result.json")
    code, headers, page = get(served)
    assert (code, "Refresh" in headers, "Not finished" in page) == (200, False, False)
    assert listing(run) == sorted([*before, "result.json"])  # it writes nothing


def test_only_this_machine_is_answered(served: ReportServer) -> None:
    assert served.server_address[0] == HOST == "127.0.0.1"
    for host in ("example.org", f"example.org:{served.server_port}", HOST, ""):
        assert get(served, Host=host)[0] == 403
    assert get(served, Host=f"localhost:{served.server_port}")[0] == 200


def test_nothing_but_the_page_is_served(served: ReportServer) -> None:
    for path in ("/config.yaml", "/../result.json", "/%2e%2e/result.json", "/?a"):
        assert get(served, path)[::2] == (404, "not found\n")
    code, headers, body = get(served, method="HEAD")
    assert (code, body, int(headers["Content-Length"]) > 1000) == (200, "", True)
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Server"].strip() == "quadranas"
    assert get(served, method="POST")[0] == 501


def test_a_folder_that_disappears_is_said(run: Path, served: ReportServer) -> None:
    run.rename("elsewhere")
    code, headers, text = get(served)
    assert (code, text) == (500, "run folder run does not exist\n")
    assert headers["Content-Type"] == "text/plain; charset=utf-8"


def test_faults_end_before_anything_is_served(run: Path) -> None:
    with pytest.raises(QuadranasError, match="run folder nowhere does not exist"):
        ReportServer(Path("nowhere"))
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(QuadranasError, match=f"cannot serve the page at {HOST}:{port}"):
            ReportServer(run, port)
    refused = call("report", run, "--watch", "--json")
    assert (refused.code, refused.json()["hint"]) == (2, "Omit --json, or --watch.")
    assert (
        "--watch and --compare are given" in call("report", run, "--watch", "--compare", ".").err
    )
    assert "--port is given without --watch" in call("report", run, "--port", "8000").err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_the_command_ends_when_it_is_told(
    run: Path, tmp_path: Path, server: Server, number: signal.Signals, code: int
) -> None:
    process = server.start(tmp_path, "report", str(run), "--watch")
    stdout = tmp_path / "stdout"
    until(lambda: stdout.exists() and "Ctrl-C ends it" in stdout.read_text("utf-8"))
    address = stdout.read_text("utf-8").split()[0]
    port = int(address.removesuffix("/").rpartition(":")[2])
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    connection.request("HEAD", "/nowhere")
    assert connection.getresponse().status == 404
    process.kill(number)
    outcome = process.wait()
    assert outcome.code == code
    assert outcome.err == ("" if code == 0 else "error: interrupted\n")
