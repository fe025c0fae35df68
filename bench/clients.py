"""`image list` of real clients on 3,000 products: our index against other makers', by alias setting.

For `lxc` that is the Python tool's. It lists nothing that Incus takes, which shows an empty list in less
time than any other, so for `incus` it is that of `incus-simplestreams`: of one image that this adds, with
3,000 names and hashes in place of one, for it would add so many for minutes.

Each client also lists our index with aliases "path" less the items that only the other one reads: what these
cost, which an index for both cannot do without.

Each run has a configuration directory of its own, so that no cache of an earlier one answers. Both
indexes are served by the same nginx over TLS 1.3.
"""

import gzip
import hashlib
import json
import os
import shutil
import statistics
import time

import load
import process
import rivals
from report import seconds, spread
from server import Nginx, certificate, free_port

VERSIONS, SIZE, ROUNDS, TARGET = 3000, 65536, 9, 1.1
ALIASES = ["path", "off", "short", "name", "short path name"]
CLIENTS = {"lxc": "LXD_CONF", "incus": "INCUS_CONF"}
OTHERS_ITEM = {"lxc": "incus.tar.xz", "incus": "lxd.tar.xz"}
RIVALS = {"lxc": "Python tool", "incus": "incus-simplestreams"}


def listing(client, directory, certificate_path, port):
    """What `image list` takes in a fresh configuration."""
    conf = directory / "conf"
    shutil.rmtree(conf, ignore_errors=True)
    (conf / "servercerts").mkdir(parents=True)
    shutil.copy(certificate_path, conf / "servercerts/bench.crt")
    environment = {**os.environ, CLIENTS[client]: str(conf), "HOME": str(conf)}
    process.take([client, "remote", "add", "bench", f"https://127.0.0.1:{port}",
                  "--protocol=simplestreams"], env=environment)
    return process.take([client, "image", "list", "bench:", "--format", "csv"], env=environment).wall


def incus_index(directory, root):
    """An index of so many products as `incus-simplestreams add` writes it for one, below `directory`."""
    directory.mkdir()
    metadata = rivals.incus_metadata(directory / "metadata.tar.xz", "bench")
    process.take(["incus-simplestreams", "add", metadata, root], cwd=directory)
    streams = directory / "streams/v1"
    index, images = (json.loads((streams / name).read_text()) for name in ("index.json", "images.json"))
    [(name, product)] = images["products"].items()
    text = json.dumps(product)
    hashes = {word for word in text.replace("/", '"').replace(".", '"').split('"') if len(word) == 64}

    def another(number):
        copy = text.replace('"bench', f'"bench{number}')
        for known in hashes:
            copy = copy.replace(known, hashlib.sha256(f"{known}{number}".encode()).hexdigest())
        return json.loads(copy)

    images["products"] = {name.replace("bench", f"bench{number}"): another(number)
                          for number in range(VERSIONS)}
    index["index"]["images"]["products"] = list(images["products"])
    # As it writes them: without blanks.
    for name, document in (("index.json", index), ("images.json", images)):
        (streams / name).write_text(json.dumps(document, separators=(",", ":")))


def for_one_client(nginx, port, directory, others):
    """Our index below `directory`, without the items under the key `others`."""
    streams = directory / "streams/v1"
    streams.mkdir(parents=True)
    (streams / "index.json").write_bytes(nginx.fetch(port, "/streams/v1/index.json"))
    images = json.loads(nginx.fetch(port, "/streams/v1/images.json"))
    for product in images["products"].values():
        for version in product["versions"].values():
            del version["items"][others]
    text = json.dumps(images, separators=(",", ":")).encode()
    (streams / "images.json").write_bytes(text)
    # As ours is sent, where that matters.
    (streams / "images.json.gz").write_bytes(gzip.compress(text))


def run(work, report):
    directory = work.fresh("clients")
    tree = work.make_tree(VERSIONS, SIZE)
    tool = rivals.python_tool()
    crt, key = certificate(directory)
    ports, http = {}, f"    ssl_protocols TLSv1.3; ssl_certificate {crt}; ssl_certificate_key {key};\n"
    for aliases in ALIASES:
        ports[aliases] = free_port()
        http += (f"    server {{ listen 127.0.0.1:{ports[aliases]} ssl; simplestreams {tree}; "
                 f"simplestreams_aliases {aliases}; }}\n")
    if tool:
        ports["Python tool"] = free_port()
        streams = rivals.prepared(tree)
        process.take(rivals.python_update(tool, tree))
        shutil.move(streams.parent, directory / "streams")
        http += (f"    server {{ listen 127.0.0.1:{ports['Python tool']} ssl; "
                 f"root {directory}; }}\n")
    if rivals.incus_simplestreams():
        incus = directory / "incus"
        incus_index(incus, next(tree.glob("images/**/rootfs.squashfs")))
        ports["incus-simplestreams"] = free_port()
        http += (f"    server {{ listen 127.0.0.1:{ports['incus-simplestreams']} ssl; root {incus}; }}\n")
    alone = {client: f"path, for {client} alone" for client in CLIENTS}
    for client, name in alone.items():
        ports[name] = free_port()
        http += f"    server {{ listen 127.0.0.1:{ports[name]} ssl; gzip_static on; root {directory}/{client}-alone; }}\n"
    plain = free_port()
    checks = "".join(f"    server {{ listen 127.0.0.1:{plain}; server_name a{i}; simplestreams {tree}; "
                     f"simplestreams_aliases {a}; }}\n" for i, a in enumerate(ALIASES[:1]))
    rows = []
    with Nginx(directory / "nginx", http + checks) as nginx:
        nginx.wait_for(lambda: (nginx.fetch(plain, "/streams/v1/images.json") or b"")
                       .count(b'"release_title"') == VERSIONS)
        time.sleep(5)  # The other four indexes are of the same hashes.
        for client, others in OTHERS_ITEM.items():
            for_one_client(nginx, plain, directory / f"{client}-alone", others)
        for client in CLIENTS:
            if not shutil.which(client):
                continue
            taken = {name: [] for name in ports}
            for _ in range(ROUNDS):
                for name, port in ports.items():
                    if name in alone.values() and name != alone[client]:
                        continue
                    taken[name].append(listing(client, directory, crt, port))
            theirs = taken.get(RIVALS[client])
            for name, times in taken.items():
                if not times:
                    continue
                ratio = load.ratios(times, theirs) if theirs else None
                told = (report.verdict(f"{client} image list, aliases path", ratio[0], TARGET)
                        if ratio and name == "path" else "")
                rows.append([client, name, seconds(statistics.median(times)),
                             spread(*ratio) if ratio else "-", told])
    report.title(f"Clients on {VERSIONS} products: at most {TARGET} × with aliases \"path\"",
                 __doc__.strip())
    report.table(["client", "index", "image list", "to the rival's", ""], rows)
