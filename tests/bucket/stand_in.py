"""A bucket in this process, for clients of Google Cloud Storage.

    with stand_in.served() as bucket:       # in the parent
        ...environ | bucket.environment     # in a child, before it opens gs://bucket/

It serves what TensorFlow, TensorStore, google-cloud-storage and Beam call of the JSON API
(https://cloud.google.com/storage/docs/json_api/v1). TensorFlow only knows Google's own addresses
and https, so the server is also its proxy and answers for them, with a certificate of its own.
"""

import base64
import collections
import contextlib
import dataclasses
import datetime
import email
import http.server
import ipaddress
import itertools
import json
import pathlib
import re
import ssl
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Iterator

import google_crc32c
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAME = "bucket"
HOSTS = ("storage.googleapis.com", "www.googleapis.com")
SLOW_SECONDS = 0.3
FAULTS = (429, 503, "slow")


@dataclasses.dataclass(frozen=True)
class Object:
    """One version of an object."""

    name: str
    data: bytes
    generation: int
    updated: str

    def fields(self) -> dict:
        """Its metadata as the API gives it."""
        checksum = google_crc32c.value(self.data).to_bytes(4, "big")
        return {
            "kind": "storage#object",
            "id": f"{NAME}/{self.name}/{self.generation}",
            "bucket": NAME,
            "name": self.name,
            "size": str(len(self.data)),
            "generation": str(self.generation),
            "metageneration": "1",
            "crc32c": base64.b64encode(checksum).decode(),
            "timeCreated": self.updated,
            "updated": self.updated,
        }


class Bucket:
    """Objects by name, and the faults that clients meet.

    Attributes:
      objects: the newest version of each object.
      requests: {"GET list": 3, ...}, answered so far.
      fault_every: every so many requests one is answered by the next of FAULTS; 0: none is. The
        same request is never refused twice in a row.
      faults: {fault: times injected}.
      environment: variables with which a process's clients use this bucket.
    """

    def __init__(self):
        self.objects: dict[str, Object] = {}
        self.requests = collections.Counter()
        self.fault_every = 0
        self.faults = collections.Counter()
        self.environment: dict[str, str] = {}
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.lock = threading.RLock()
        self._generations = itertools.count(1_700_000_000_000_000)
        self._refused: set[str] = set()
        self._counter = itertools.count(1)

    def names(self, prefix: str = "") -> list[str]:
        """Sorted names of the objects that start with `prefix`."""
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def put(self, name: str, data: bytes) -> Object:
        """Stores a new version."""
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        with self.lock:
            self.objects[name] = Object(name, data, next(self._generations), now)
            return self.objects[name]

    def put_folder(self, folder: pathlib.Path, name: str) -> None:
        """Copies the files of a local folder to `name`/."""
        for file in filter(pathlib.Path.is_file, pathlib.Path(folder).rglob("*")):
            self.put(f"{name}/{file.relative_to(folder)}", file.read_bytes())

    def next_fault(self, request: str) -> int | str | None:
        """The fault with which `request` is answered, or None."""
        with self.lock:
            if request in self._refused:
                self._refused.remove(request)
                return None
            if not self.fault_every or next(self._counter) % self.fault_every:
                return None
            fault = FAULTS[self.faults.total() % len(FAULTS)]
            self.faults[fault] += 1
            if fault != "slow":
                self._refused.add(request)
            return fault


@contextlib.contextmanager
def served() -> Iterator[Bucket]:
    """Serves a new bucket until the block ends."""
    bucket = Bucket()
    with tempfile.TemporaryDirectory() as folder:
        certificate, context = _certificate(pathlib.Path(folder))

        class Handler(_Handler):
            pass

        Handler.bucket, Handler.context = bucket, context
        server = _Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        bucket.environment = {
            "https_proxy": address,
            "no_proxy": "127.0.0.1,localhost",
            "CURL_CA_BUNDLE": str(certificate),
            "REQUESTS_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "GOOGLE_CLOUD_PROJECT": "project",
            "NO_GCE_CHECK": "true",
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
        }
        try:
            yield bucket
        finally:
            server.shutdown()
            server.server_close()


def _certificate(folder: pathlib.Path) -> tuple[pathlib.Path, ssl.SSLContext]:
    """A self-signed certificate for HOSTS: its file, and the context of a server that shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in bucket")])
    now = datetime.datetime.now(datetime.UTC)
    names = [*map(x509.DNSName, HOSTS), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(*encoding, serialization.NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, folder / "key.pem")
    return file, context


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Prints the error, unless a client was killed."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Refused(Exception):
    """An answer other than 200."""

    def __init__(self, code: int, text: str = ""):
        super().__init__(text)
        self.code = code


class _Handler(http.server.BaseHTTPRequestHandler):
    bucket: Bucket
    context: ssl.SSLContext
    protocol_version = "HTTP/1.1"
    scheme = "http"
    wbufsize = -1
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_CONNECT(self):
        """Plays the host to which the client wants to be connected."""
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        self.connection = self.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb")
        self.scheme = "https"
        self.close_connection = False

    def handle_expect_100(self):
        """Asks for the body at once; curl waits a second for this line before it sends the body."""
        is_expected = super().handle_expect_100()
        self.wfile.flush()
        return is_expected

    def _serve(self):
        if self.headers.get("Transfer-Encoding") == "chunked":  # TensorFlow states a length too.
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.bucket.next_fault(f"{self.command} {self.path} {self.headers.get('Range')}")
        if fault == "slow":
            time.sleep(SLOW_SECONDS)
        if isinstance(fault, int):
            answer = fault, {"Retry-After": "0"}, b"{}"
        else:
            answer = self._answer(self.command, self.path, self.headers, body)
        self._send(*answer)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve

    def _chunk(self):
        data = self.rfile.read(int(self.rfile.readline(), 16))
        self.rfile.readline()
        return data

    def _send(self, code, headers, body):
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        if code != 204 and not (self.command == "HEAD" and "Content-Length" in headers):
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _answer(self, method, path, headers, body):
        """(code, headers, body) of a request."""
        path, _, query = path.partition("?")
        query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        try:
            for pattern, answer in _ROUTES:
                if match := re.fullmatch(pattern, f"{method} {path}"):
                    self.bucket.requests[f"{method} {answer.__name__.strip('_')}"] += 1
                    parts = map(urllib.parse.unquote, match.groups())
                    return answer(self, *parts, query=query, headers=headers, body=body)
            raise _Refused(400, f"the stand-in bucket doesn't know {method} {path}")
        except _Refused as refused:
            error = {"error": {"code": refused.code, "message": str(refused)}}
            return refused.code, {"Content-Type": "application/json"}, json.dumps(error).encode()

    def _object(self, name, query):
        found = self.bucket.objects.get(name)
        if found is None or query.get("generation", found.generation) not in (
            found.generation,
            str(found.generation),
        ):
            raise _Refused(404, f"No such object: {NAME}/{name}")
        return found

    def _check_precondition(self, name, query):
        found = self.bucket.objects.get(name)
        generation = found.generation if found else 0
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise _Refused(412, "conditionNotMet")
        if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
            raise _Refused(304)

    def _describe_bucket(self, *_, **__):
        return _json({"kind": "storage#bucket", "name": NAME, "location": "HERE"})

    def _layout(self, *_, **__):
        return _json({"kind": "storage#storageLayout", "bucket": NAME, "location": "HERE"})

    def _list(self, *, query, **_):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        limit = int(query.get("maxResults", 1000))
        start = max(query.get("pageToken", ""), query.get("startOffset", ""))
        items, prefixes = [], []
        with self.bucket.lock:
            for name in self.bucket.names(prefix):
                if name < start or name >= query.get("endOffset", "\U0010ffff"):
                    continue
                cut = name.find(delimiter, len(prefix)) if delimiter else -1
                folder = name[: cut + 1]
                if cut >= 0 and folder in prefixes:
                    continue
                if len(items) + len(prefixes) == limit:
                    page = {"nextPageToken": name}
                    return _json({"items": items, "prefixes": prefixes, **page})
                if cut >= 0:
                    prefixes.append(folder)
                else:
                    items.append(self.bucket.objects[name].fields())
        return _json({"items": items, "prefixes": prefixes})

    def _read(self, name, *, query, headers, **_):
        with self.bucket.lock:
            self._check_precondition(name, query)
            found = self._object(name, query)
        if query.get("alt") == "media":
            return self._media(name, query=query, headers=headers)
        return _json(found.fields())

    def _media(self, name, *, query, headers, **_):
        found = self._object(name, query)
        data, code = found.data, 200
        described = {
            "Content-Type": "application/octet-stream",
            "X-Goog-Generation": str(found.generation),
            "X-Goog-Metageneration": "1",
            "X-Goog-Stored-Content-Length": str(len(data)),
            "Last-Modified": email.utils.format_datetime(
                datetime.datetime.fromisoformat(found.updated), usegmt=True
            ),
        }
        if wanted := re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range") or ""):
            size, code = len(data), 206
            first = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
            last = min(int(wanted[2]), size - 1) if wanted[1] and wanted[2] else size - 1
            if first >= size:
                raise _Refused(416, "the range is beyond the end")
            data = data[first : last + 1]
            described["Content-Range"] = f"bytes {first}-{last}/{size}"
        if self.command == "HEAD":
            described["Content-Length"] = str(len(data))
        return code, described, data

    def _delete(self, name, *, query, **_):
        with self.bucket.lock:
            self._check_precondition(name, query)
            self._object(name, query)
            del self.bucket.objects[name]
        return 204, {}, b""

    def _copy(self, source, target, *, query, **_):
        with self.bucket.lock:
            self._check_precondition(target, query)
            copied = self.bucket.put(target, self._object(source, {}).data).fields()
        size = copied["size"]
        done = {"done": True, "objectSize": size, "totalBytesRewritten": size, "resource": copied}
        return _json({"kind": "storage#rewriteResponse", **done})

    def _compose(self, target, *, body, query, **_):
        with self.bucket.lock:
            self._check_precondition(target, query)
            parts = [source["name"] for source in json.loads(body)["sourceObjects"]]
            data = b"".join(self._object(part, {}).data for part in parts)
            return _json(self.bucket.put(target, data).fields())

    def _upload(self, *, query, headers, body):
        kind = query["uploadType"]
        if kind == "multipart":
            content_type = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
            fields, _ = email.message_from_bytes(content_type + body).get_payload()
            query["name"] = query.get("name") or json.loads(fields.get_payload())["name"]
            body = _after_headers(body, headers["Content-Type"])
        elif kind == "resumable":
            query["name"] = query.get("name") or json.loads(body)["name"]
            session = f"/upload/session/{len(self.bucket.uploads)}"
            with self.bucket.lock:
                self._check_precondition(query["name"], query)
                self.bucket.uploads[session] = query["name"], query, bytearray()
            return 200, {"Location": f"{self.scheme}://{headers['Host']}{session}"}, b""
        return self._store(query["name"], body, query)

    def _store(self, name, data, query):
        with self.bucket.lock:
            self._check_precondition(name, query)
            return _json(self.bucket.put(name, bytes(data)).fields())

    def _continue_upload(self, session, *, headers, body, **_):
        name, query, received = self.bucket.uploads[session]
        described = headers.get("Content-Range") or f"bytes 0-{len(body) - 1}/{len(body)}"
        first, total = re.fullmatch(r"bytes (?:(\d+)--?\d+|\*)/(\d+|\*)", described).groups()
        if first is not None:
            received[int(first) :] = body
        if total != "*" and int(total) == len(received):
            return self._store(name, received, query)
        received_range = {"Range": f"bytes=0-{len(received) - 1}"} if received else {}
        return 308, received_range, b""

    def _batch(self, *, headers, body, **_):
        content_type = f"Content-Type: {headers['Content-Type']}\r\n\r\n".encode()
        answers = []
        for number, part in enumerate(email.message_from_bytes(content_type + body).get_payload()):
            request = part.get_payload()
            first, _, rest = request.partition("\n")
            method, path, _ = first.split()
            fields, _, content = rest.replace("\r\n", "\n").partition("\n\n")
            path = re.sub("^https?://[^/]+", "", path)
            code, _, answer = self._answer(
                method, path, email.message_from_string(fields), content.encode()
            )
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>\r\n"
                f"\r\nHTTP/1.1 {code} Answer\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(answer)}\r\n\r\n{answer.decode()}\r\n"
            )
        text = "".join(answers) + "--batch--\r\n"
        return 200, {"Content-Type": "multipart/mixed; boundary=batch"}, text.encode()


def _json(value: dict) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _after_headers(body: bytes, content_type: str) -> bytes:
    """The bytes of the second part of a multipart upload."""
    boundary = re.search(r'boundary="?([^";]+)', content_type)[1].encode()
    part = body.split(b"--" + boundary, 2)[2]
    data = re.split(b"\r?\n\r?\n", part, maxsplit=1)[1]
    return data.rpartition(b"--" + boundary + b"--")[0].removesuffix(b"\n").removesuffix(b"\r")


_OBJECT = rf"/storage/v1/b/{NAME}/o/([^/]+)"
_ROUTES = [
    (rf"POST /upload/storage/v1/b/{NAME}/o", _Handler._upload),
    (r"PUT (/upload/session/\d+)", _Handler._continue_upload),
    (r"POST /batch/storage/v1", _Handler._batch),
    (rf"GET /storage/v1/b/{NAME}", _Handler._describe_bucket),
    (rf"GET /storage/v1/b/{NAME}/storageLayout", _Handler._layout),
    (rf"GET /storage/v1/b/{NAME}/o/?", _Handler._list),
    (rf"GET {_OBJECT}", _Handler._read),
    (rf"GET /download{_OBJECT}", _Handler._media),
    (rf"DELETE {_OBJECT}", _Handler._delete),
    (rf"POST {_OBJECT}/(?:rewriteTo|copyTo)/b/{NAME}/o/([^/]+)", _Handler._copy),
    (rf"POST {_OBJECT}/compose", _Handler._compose),
    (rf"(?:GET|HEAD) /{NAME}/(.+)", _Handler._media),
]
