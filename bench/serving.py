"""How fast documents are served, against the same nginx serving the same bytes as files.

One nginx, one worker on a core of its own, the load on another. The rival stands in the same process
at another port: `sendfile`, `open_file_cache` and `gzip_static` on, once with `tcp_nopush` and once
without; in each cell the faster of the two counts. It sends fewer header lines than we do (no
Access-Control-Allow-Origin, no Vary), which is to its advantage.

`least` is a `return 204` of the same server: what nginx takes to read a request and answer nothing.
Where even that is not faster than the rival by the target's factor, no content handler can be.
"""

import gzip
import shutil
import statistics
import subprocess

import load
import trees
from report import seconds, spread
from server import Nginx, certificate, free_port

FILES = ("sendfile on; open_file_cache max=1000 inactive=600s; open_file_cache_valid 600s; "
         "gzip_static on;")
ROUNDS = 5
# Seconds of a turn: of one with large bodies there are but thirty answers in one.
TURN, LARGE_TURN = 1, 2
SIZES = [(12, 65536), (3000, 65536), (40000, 1024)]
PLAIN, TLS = 1.0, 1.1


def cells(versions):
    """(document, kind of request) that make sense at this size: what has no body has no size."""
    for document in ("index", "images"):
        for kind in ("identity", "gzip", "304", "HEAD"):
            if versions < 40000 or kind in ("identity", "gzip"):
                yield document, kind


def servers(directory, work):
    """Ports (plain, TLS) by (side, size), and the servers' configuration."""
    crt, key = certificate(directory)
    tls = f"ssl_protocols TLSv1.3; ssl_certificate {crt}; ssl_certificate_key {key};"
    ports, http = {}, f"    {tls}\n    sendfile on;\n"
    for versions, _ in SIZES:
        files = f"{FILES} root {directory}/files-{versions};"
        sides = {
            "ours": f"tcp_nopush on; simplestreams {work.tree(versions)};",
            "files": files,
            "files, tcp_nopush": f"tcp_nopush on; {files}",
            "least": "location / { return 204; }",
        }
        for side, body in sides.items():
            plain, secure = ports[side, versions] = (
                free_port(), free_port())
            http += (f"    server {{ listen 127.0.0.1:{plain}; "
                     f"listen 127.0.0.1:{secure} ssl; {body} }}\n")
    return ports, http


def run(work, report):
    directory = work.fresh("serving")
    for versions, size in SIZES:
        work.make_tree(versions, size)
    ports, http = servers(directory, work)
    cpus = work.cpus()
    main = f"worker_cpu_affinity {cpus.nginx_mask};" if cpus else ""
    with Nginx(directory, http, main=main) as nginx:
        compressed = copy_documents(nginx, ports, directory, report)
        [worker] = nginx.family("worker process")
        rows, tls_rows, time_rows = [], [], []
        for versions, _ in SIZES:
            for document, kind in cells(versions):
                for tls in (False, True):
                    row = cell(nginx, worker, ports, versions, document, kind, tls, cpus, report)
                    (tls_rows if tls else rows).append(row)
        if shutil.which("perf"):
            time_rows = [row for tls in (False, True) for document, kind in cells(3000)
                         for row in where_time_goes(worker, ports, document, kind, tls, cpus)]
    header = ["versions", "document", "request", "ours/s", "files/s", "ratio (least–most)",
              "p99 ratio (least–most)", "CPU ratio", "least nginx can", ""]
    for name, target, found in (("plain", PLAIN, rows), ("TLS 1.3", TLS, tls_rows)):
        report.title(f"Serving, {name}: against files, to reach {target:.1f} ×", __doc__.strip()
                     if name == "plain" else "The same over TLS 1.3, connections kept.")
        report.table(header, found)
    if not time_rows:
        report.say("perf is not there or may not count: where the worker's time goes was not measured.\n")
    else:
        report.title("Where the worker's time goes, 3,000 versions, in percent",
                     "By perf: what is kernel and cipher no handler of contents can save but by other system "
                     "calls.")
        report.table(["document", "request", "over", "side", "kernel", "cipher", "libc", "nginx", "module", "other"],
                     time_rows)
    report.title("Bytes of images.json with gzip: against gzip -9, to reach 1.0 ×")
    report.table(["versions", "ours", "gzip -9", "ratio", ""], compressed)


def copy_documents(nginx, ports, directory, report):
    """Waits for whole indexes, and puts the same bytes into files; rows of gzip's lengths."""
    rows = []
    for versions, _ in SIZES:
        port = ports["ours", versions][0]

        def whole():
            body = nginx.fetch(port, "/streams/v1/images.json")
            return body and body.count(b'"release_title"') == versions

        nginx.wait_for(whole)
        files = directory / f"files-{versions}/streams/v1"
        files.mkdir(parents=True)
        for name in ("index.json", "images.json"):
            plain = nginx.fetch(port, f"/streams/v1/{name}")
            packed = nginx.fetch(port, f"/streams/v1/{name}", gzip=True)
            if gzip.decompress(packed) != plain:
                raise SystemExit(f"{name}: its gzip variant is of another document")
            (files / name).write_bytes(plain)
            (files / f"{name}.gz").write_bytes(packed)
        best = len(subprocess.run(["gzip", "-9nc", files / "images.json"], check=True,
                                  capture_output=True).stdout)
        ratio = len(packed) / best
        rows.append([versions, len(packed), best, f"{ratio:.4f}",
                     report.verdict(f"gzip, {versions} versions", ratio, 1.0)])
    return rows


def url_of(ports, side, versions, document, tls):
    plain, secure = ports[side, versions]
    where = f"https://127.0.0.1:{secure}" if tls else f"http://127.0.0.1:{plain}"
    return f"{where}/streams/v1/{document}.json"


def is_large(document, versions, kind):
    """Large bodies from few connections, or nothing is measured but queues."""
    return document == "images" and versions >= 3000 and kind in ("identity", "gzip")


def where_time_goes(worker, ports, document, kind, tls, cpus):
    for side in ("ours", "files", "files, tcp_nopush"):
        url = url_of(ports, side, 3000, document, tls)
        parts = load.shares(worker, url, TURN, 4 if is_large(document, 3000, kind) else 16,
                            headers(url, kind, side), kind == "HEAD", cpus and cpus.load)
        if parts:
            yield [document, kind, "TLS" if tls else "plain", side, *(f"{part:.0f}" for part in parts.values())]


def cell(nginx, worker, ports, versions, document, kind, tls, cpus, report):
    sides = []
    for name in ("ours", "files", "files, tcp_nopush", "least"):
        url = url_of(ports, name, versions, document, tls)
        sides.append(load.Side(name, url, headers(url, kind, name)))
    large = is_large(document, versions, kind)
    load.alternate(sides, ROUNDS, worker, seconds=LARGE_TURN if large else TURN,
                   connections=4 if large else 16, head=kind == "HEAD", cpus=cpus and cpus.load)
    ours, *files, least = sides
    rival = max(files, key=lambda side: statistics.median(side.rate))
    rate = load.ratios(ours.rate, rival.rate)
    p99 = load.ratios(ours.p99, rival.p99)
    cpu = load.ratios(ours.cpu, rival.cpu)
    limit = load.ratios(least.rate, rival.rate)[0]
    what = f"{document}.json, {kind}, {versions} versions, {'TLS' if tls else 'plain'}"
    told = report.verdict(what, round(rate[0], 2), TLS if tls else PLAIN, at_least=True)
    # One second has few slow requests: worse is what is worse in every turn.
    if p99[1] > 1 and round(p99[0], 2) > 1:
        told += ", p99 " + report.verdict(f"{what}, p99", p99[0], 1)
    middle = lambda side: f"{statistics.median(side.rate):.0f}"
    row = [versions, document, kind, middle(ours), middle(rival), spread(*rate), spread(*p99),
           f"{cpu[0]:.2f}", f"{limit:.2f}", told]
    print("  ", *row[:-1], "p99", seconds(statistics.median(ours.p99)), flush=True)
    return row


def headers(url, kind, side):
    if kind == "gzip":
        return ["Accept-Encoding: gzip"]
    if kind == "304" and side != "least":
        answer = subprocess.run(["curl", "-skI", url], check=True, capture_output=True, text=True)
        for line in answer.stdout.splitlines():
            name, _, value = line.partition(": ")
            if name.lower() == "etag":
                return [f"If-None-Match: {value.strip()}"]
        raise SystemExit(f"{url} has no entity tag")
    return []
