"""A small model hub on loopback that the real clients talk to: HF_ENDPOINT points at it.

    with Hub(folder) as hub:                       # what lies in the folder is what it serves
        subprocess.run([...], env=hub.environment(home))
    subprocess.run([...], env=hub.offline(home))   # afterwards, from what was fetched

    python test/hub.py --port 8000                 # the same by hand, with the standard content

The folder holds `models/<organisation>/<name>/` and `datasets/<organisation>/<name>/`; a further
branch of a repository is a folder beside it, `<name>@<branch>`. `write_standard_content` fills one
with the demo model under the hub ids of aliases, and with small tables in the schemas of
WebQuestions and MyriadLAMA. Large files are answered as the public hub does it: a redirect to a
storage host, where no token is sent and ranges are served.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]

# May read everything; is known, but was let in nowhere; any other token is refused.
GOOD_TOKEN = "hf_reader"
STRANGERS_TOKEN = "hf_stranger"

STORED_APART = (".safetensors", ".parquet", ".bin", ".pth")  # behind a redirect, named by sha256
SETTINGS = re.compile(r"HF_|HUGGINGFACE_|TRANSFORMERS_OFFLINE|XDG_CACHE_HOME|\w+_proxy$", re.I)


@dataclass(frozen=True)
class File:
    path: Path

    @cached_property
    def content(self) -> bytes:
        return self.path.read_bytes()

    @property
    def is_apart(self) -> bool:
        return self.path.suffix in STORED_APART

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """As git names it."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_apart else self.blob_id

    def entry(self, name: str) -> dict:
        """As the tree and paths-info endpoints list it."""
        described = {"type": "file", "path": name, "oid": self.blob_id, "size": len(self.content)}
        if self.is_apart:
            size = len(self.content)
            described["lfs"] = {"oid": self.sha256, "size": size, "pointerSize": 134}
        return described


@dataclass(frozen=True)
class Snapshot:
    """A branch's files at its only commit, which is named by their content."""

    files: dict[str, File]

    @classmethod
    def of(cls, folder: Path) -> Snapshot:
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        return cls({str(path.relative_to(folder)): File(path) for path in paths})

    @cached_property
    def commit(self) -> str:
        listed = "".join(f"{name}\0{file.blob_id}\0" for name, file in self.files.items())
        return hashlib.sha1(listed.encode()).hexdigest()

    def entries(self, under: str = "", *, recursive: bool) -> list[dict]:
        """The files, and the folders that they lie in, below a path."""
        found = {}
        start = f"{under}/" if under else ""
        for name, file in self.files.items():
            if not name.startswith(start):
                continue
            parts = name[len(start) :].split("/")
            for depth in range(1, len(parts)):
                folder = start + "/".join(parts[:depth])
                oid = hashlib.sha1(folder.encode()).hexdigest()
                found[folder] = {"type": "directory", "path": folder, "oid": oid, "size": 0}
            found[name] = file.entry(name)
        if recursive:
            return list(found.values())
        return [entry for entry in found.values() if "/" not in entry["path"][len(start) :]]


@dataclass(frozen=True)
class Repository:
    kind: str  # model or dataset
    name: str
    branches: dict[str, Snapshot]

    def at(self, revision: str) -> Snapshot | None:
        for branch, snapshot in self.branches.items():
            if revision in (branch, snapshot.commit):
                return snapshot
        return None


@dataclass
class Fault:
    """What happens to the bodies of files whose name ends so: cut or held after some bytes."""

    ending: str
    after: int
    times: int
    hold: bool = False


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    status: int
    file: str | None = None  # whose content was sent
    first_byte: int = 0
    num_bytes: int = 0
    token: str | None = None


@dataclass
class Hub:
    """Serves a folder while its `with` lasts.

    log: every request that was answered, in order of the answers' ends.
    access: of the repositories that are not open to all: name -> ``private`` or ``gated``.
    broken: name -> the status that every request about it gets, such as 503.
    unknown: requests that are none of a hub's, as far as this one knows.
    """

    folder: Path
    port: int = 0
    log: list[Request] = field(default_factory=list)
    access: dict[str, str] = field(default_factory=dict)
    broken: dict[str, int] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)  # set while a file is held

    def __enter__(self) -> Hub:
        self.repositories = dict(read_repositories(self.folder))
        self.apart = {
            file.sha256: (name, file)
            for repository in self.repositories.values()
            for snapshot in repository.branches.values()
            for name, file in snapshot.files.items()
            if file.is_apart
        }
        self.closing = threading.Event()
        self.server = Server(("127.0.0.1", self.port), Handler)
        self.server.hub = self
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """For a child process: this hub, a cache of its own, and none of the user's settings."""
        kept = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
        ours = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        return kept | ours | ({"HF_TOKEN": token} if token else {})

    def offline(self, home: Path) -> dict[str, str]:
        return self.environment(home) | {"HF_HUB_OFFLINE": "1"}

    def cut(self, ending: str, *, after: int, times: int = 1) -> None:
        """Drop the connection in the middle of a file's content."""
        self.faults.append(Fault(ending, after, times))

    def hold(self, ending: str, *, after: int) -> None:
        """Stop sending in the middle of a file's content, until the other side or the hub ends."""
        self.faults.append(Fault(ending, after, 1, hold=True))

    def sent(self) -> dict[str, int]:
        """File -> bytes of its content that were sent, since the log was last cleared."""
        bodies: dict[str, int] = {}
        for request in list(self.log):
            if request.file is not None:
                bodies[request.file] = bodies.get(request.file, 0) + request.num_bytes
        return bodies


def read_repositories(folder: Path) -> Iterable[tuple[tuple[str, str], Repository]]:
    """((kind, name), repository) of a folder laid out as the module's docstring says."""
    for kind in ("model", "dataset"):
        for path in sorted((folder / f"{kind}s").glob("*/*")):
            if "@" in path.name:
                continue
            beside = {
                other.name.rpartition("@")[2]: Snapshot.of(other)
                for other in path.parent.glob(f"{path.name}@*")
            }
            name = f"{path.parent.name}/{path.name}"
            yield (kind, name), Repository(kind, name, {"main": Snapshot.of(path), **beside})


class Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub

    def handle_error(self, request, client_address) -> None:
        """A client that went away is no error of the hub's; anything else is shown."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_GET

    def log_message(self, *_) -> None:
        pass

    @property
    def hub(self) -> Hub:
        return self.server.hub

    @property
    def token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        form = parse_qs(self.rfile.read(length).decode())
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        path = url.path
        if match := re.fullmatch(r"/stored/([0-9a-f]{64})", path):
            return self.content(*self.hub.apart[match[1]])
        if match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            kind = "dataset" if match[1] else "model"
            return self.about(kind, match[2], unquote(match[3]), self.resolve, unquote(match[4]))
        if match := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            revision = unquote(match[3] or "main")
            return self.about(match[1], match[2], revision, self.info)
        if match := re.fullmatch(
            r"/api/(model|dataset)s/([^/]+/[^/]+)/(tree|paths-info)/([^/]+)(?:/(.+))?", path
        ):
            kind, name, what, revision, under = match.groups()
            listing = self.tree if what == "tree" else self.paths_info
            given = (unquote(under or ""), query) if what == "tree" else (form,)
            return self.about(kind, name, unquote(revision), listing, *given)
        self.hub.unknown.append(f"{self.command} {self.path}")
        return self.refuse(404, None, "This hub has no such address")

    def about(self, kind: str, name: str, revision: str, go_on, *args) -> None:
        """Goes on with a repository's snapshot, unless this request may not or cannot have it.

        Status, code and text are the public hub's, which tells someone without a token of no
        private or missing repository apart.
        """
        hub, token = self.hub, self.token
        repository = hub.repositories.get((kind, name))
        access = hub.access.get(name)
        is_guest = token not in (GOOD_TOKEN, STRANGERS_TOKEN)
        if name in hub.broken:
            return self.refuse(hub.broken[name], None, "Internal Error - We're working hard")
        if token is not None and is_guest:
            return self.refuse(401, None, "Invalid credentials in Authorization header")
        if repository is None or (access == "private" and token != GOOD_TOKEN):
            if is_guest:
                return self.refuse(401, "RepoNotFound", "Invalid username or password.")
            return self.refuse(404, "RepoNotFound", "Repository not found")
        if access == "gated" and token != GOOD_TOKEN and "/resolve/" in self.path:
            start = f"Access to {kind} {name} is restricted"
            if is_guest:
                return self.refuse(401, "GatedRepo", f"{start}. Please log in.")
            return self.refuse(403, "GatedRepo", f"{start} and you are not in the authorized list.")
        snapshot = repository.at(revision)
        if snapshot is None:
            return self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return go_on(repository, snapshot, *args)

    def info(self, repository: Repository, snapshot: Snapshot) -> None:
        access = self.hub.access.get(repository.name)
        about = {
            "id": repository.name,
            "sha": snapshot.commit,
            "private": access == "private",
            "gated": "manual" if access == "gated" else False,
            "tags": [],
            "siblings": [{"rfilename": name} for name in snapshot.files],
        }
        self.json(about)

    def tree(self, _, snapshot: Snapshot, under: str, query) -> None:
        recursive = query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = snapshot.entries(under, recursive=recursive)
        if under and not entries:
            return self.refuse(404, "EntryNotFound", f"{under} does not exist", snapshot.commit)
        return self.json(entries)

    def paths_info(self, _, snapshot: Snapshot, form) -> None:
        asked = form.get("paths", [])
        entries = snapshot.entries(recursive=True)
        self.json([entry for entry in entries if entry["path"] in asked])

    def resolve(self, _, snapshot: Snapshot, name: str) -> None:
        file = snapshot.files.get(name)
        if file is None:
            return self.refuse(404, "EntryNotFound", "Entry not found", snapshot.commit)
        headers = {"X-Repo-Commit": snapshot.commit, "ETag": f'"{file.etag}"'}
        if not file.is_apart:
            return self.content(name, file, headers)
        headers |= {
            "X-Linked-ETag": f'"{file.sha256}"',
            "X-Linked-Size": str(len(file.content)),
            # Another origin, as a storage host is.
            "Location": f"http://localhost:{self.hub.port}/stored/{file.sha256}",
        }
        return self.send(302, headers, b"")

    def content(self, name: str, file: File, headers: dict[str, str] | None = None) -> None:
        headers = {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", **(headers or {})}
        body, first, status = file.content, 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
            first = int(match[1])
            last = min(int(match[2] or len(body) - 1), len(body) - 1)
            if first > last:
                return self.send(416, {"Content-Range": f"bytes */{len(body)}"}, b"")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
            body, status = body[first : last + 1], 206
        return self.send(status, headers, body, file=name, first_byte=first)

    def json(self, value) -> None:
        self.send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def refuse(self, status: int, code: str | None, text: str, commit: str | None = None) -> None:
        headers = {"Content-Type": "application/json", "X-Error-Message": text}
        if code is not None:
            headers["X-Error-Code"] = code
        if commit is not None:
            headers["X-Repo-Commit"] = commit
        self.send(status, headers, json.dumps({"error": text}).encode())

    def send(self, status, headers, body: bytes, *, file=None, first_byte=0) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        sent = 0
        try:
            if self.command != "HEAD":
                sent = self.send_body(body, file)
        finally:
            path = urlsplit(self.path).path
            served = file if self.command == "GET" else None
            self.hub.log.append(
                Request(self.command, path, status, served, first_byte, sent, self.token)
            )

    def send_body(self, body: bytes, file: str | None) -> int:
        """Returns how many bytes went out."""
        for fault in self.hub.faults:
            if file is None or not file.endswith(fault.ending) or fault.times == 0:
                continue
            fault.times -= 1
            self.close_connection = True
            self.wfile.write(body[: fault.after])
            self.wfile.flush()
            if fault.hold:
                self.hub.held.set()
                self.hub.closing.wait()
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
            return fault.after
        self.wfile.write(body)
        return len(body)


# ---- what it serves where nothing else is said --------------------------------------------------

MODELS = ("llama3.2_3b_it", "llama3.2_3b")  # aliases of constants.MODEL_PATHs

# What lies beside a model's weights on the public hub, and nobody who runs it needs.
NEEDLESS = (
    "README.md",
    "LICENSE.txt",
    ".gitattributes",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "original/consolidated.00.pth",
    "original/params.json",
)


def write_standard_content(
    folder: Path, *, models: Iterable[str] = MODELS, num_questions: int = 40, num_facts: int = 2060
) -> Path:
    """Fills a hub's folder: the demo model under the ids of aliases, and both datasets.

    The questions are the demo's, so that the demo model knows some of the answers.

    Args:
        models: aliases, or hub ids; the first also has a branch `v1`.
        num_questions: rows of the test split of WebQuestions; train has half as many.
        num_facts: uuids of MyriadLAMA, 5 manual and 6 automatic templates each. More than 2,000:
            so many are the test split that its authors use.
    """
    from self_ensemble.data.registry import hub_datasets
    from self_ensemble.models.aliases import MODEL_PATHs

    for index, alias in enumerate(models):
        write_model(folder / "models" / MODEL_PATHs.get(alias, alias))
        if index == 0:
            branch = write_model(folder / "models" / f"{MODEL_PATHs.get(alias, alias)}@v1")
            (branch / "README.md").write_text("An earlier state.\n")
    write_web_questions(folder / "datasets" / hub_datasets()["webqa"], num_questions)
    write_myriad_lama(folder / "datasets" / hub_datasets()["myriadlama"], num_facts)
    return folder


def write_model(folder: Path) -> Path:
    shutil.copytree(ROOT / "demo" / "model", folder)
    for name in NEEDLESS:
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"needless " * 1000)
    return folder


def write_web_questions(folder: Path, num_questions: int) -> None:
    import pyarrow.parquet

    asked = pyarrow.parquet.read_table(ROOT / "demo" / "questions.parquet").to_pylist()
    rows = [
        {
            "url": f"http://www.freebase.com/view/en/{row['subject'].lower().replace(' ', '_')}",
            "question": next((p for p in row["paraphrases"] if p.endswith("?")), row["subject"]),
            "answers": row["answers"],
        }
        for row in asked
    ]
    train = num_questions // 2
    write_tables(folder, {"train": rows[:train], "test": rows[train : train + num_questions]})


def write_myriad_lama(folder: Path, num_facts: int) -> None:
    """A row for each template of each fact."""
    import csv

    with open(ROOT / "demo" / "facts.csv", encoding="utf-8") as file:
        facts = list(csv.DictReader(file))
    with open(ROOT / "demo" / "templates.csv", encoding="utf-8") as file:
        templates: dict[str, list[str]] = {}
        for row in csv.DictReader(file):
            text = row["template"].replace("{subject}", "[X]").replace("[MASK]", "[Y]")
            if "[Y]" in text:
                templates.setdefault(row["relation"], []).append(text)
    chosen = random.Random(0).sample(facts, num_facts)
    rows = []
    for fact in chosen:
        relation, subject, answer = fact["relation"], fact["subject"], fact["answer"]
        ours = [short_hash(text) for text in (relation, f"{subject} {answer}")]
        for number, template in enumerate(templates[relation][:11]):
            rows.append(
                {
                    "uuid": "-".join(ours),
                    "rel_uri": relation,
                    "sub_ent": subject,
                    "obj_uris": [f"Q{int(short_hash(answer), 16) % 10**7}"],
                    "obj_ents": [answer],
                    "obj_aliases": [answer, *filter(None, fact["aliases"].split("|"))],
                    "template": template,
                    "is_manual": number < 5,
                }
            )
    write_tables(folder, {"train": rows})


def short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:15]


def write_tables(folder: Path, splits: dict[str, list[dict]]) -> None:
    """`data/<split>-00000-of-00001.parquet` and the card that says so."""
    import pyarrow
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    card = ["---", "configs:", "- config_name: default", "  data_files:"]
    for split, rows in splits.items():
        table = pyarrow.Table.from_pylist(rows)
        pyarrow.parquet.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
        card += [f"  - split: {split}", f"    path: data/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", "A table for tests.", ""]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="(default: any free one)")
    parser.add_argument("--folder", type=Path, help="what to serve (default: standard content)")
    parser.add_argument(
        "--gate", action="append", default=[], metavar="ID", help="behind a licence"
    )
    parser.add_argument("--hide", action="append", default=[], metavar="ID", help="make private")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or write_standard_content(Path(temporary))
        access = dict.fromkeys(args.gate, "gated") | dict.fromkeys(args.hide, "private")
        with Hub(folder, args.port, access=access) as hub:
            print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
            for kind, name in hub.repositories:
                print(f"# {kind} {name} {hub.access.get(name, '')}".rstrip(), flush=True)
            print(f"# tokens: {GOOD_TOKEN} may read all, {STRANGERS_TOKEN} only what is open")
            shown = 0
            try:
                while True:
                    time.sleep(0.2)
                    for request in hub.log[shown:]:
                        print(f"{request.status} {request.method} {request.path}", flush=True)
                        shown += 1
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    main()
