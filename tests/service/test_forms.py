"""Forms and options as people send them: understood, or refused with what to do."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.service_kit import RATE, client_of, fake_app, live, wav

CLIP = wav(RATE // 10)
HEAD = b'content-disposition: form-data; name="file"; filename="a.wav"'


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with live(fake_app()) as port:
        yield port


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[httpx.Client]:
    with client_of(port) as client:
        yield client


def form(head: bytes = HEAD, data: bytes = CLIP, boundary: bytes = b"X") -> bytes:
    return b"--%b\r\n%b\r\n\r\n%b\r\n--%b--\r\n" % (boundary, head, data, boundary)


def refused(response: httpx.Response, status: int = 400, code: str = "bad_request") -> str:
    body = response.json()
    assert (response.status_code, body["code"]) == (status, code)
    detail: str = body["detail"]
    return detail


def test_one_file_a_request(client: httpx.Client) -> None:
    for names in (("file", "file"), ("file", "other"), ("other", "file"), ("files", "files")):
        response = client.post("/embed", files=[(name, CLIP) for name in names])
        assert "file" in refused(response)
    two = client.post("/embed", files=[("file", CLIP), ("file", CLIP)])
    assert "one file a request" in refused(two)


def test_options_in_the_form_are_sent_to_the_query(client: httpx.Client) -> None:
    for option in ("kind", "taps", "window_ms", "model"):
        response = client.post("/embed", files={"file": CLIP}, data={option: "mel"})
        assert f"?{option}=" in refused(response)
    assert "?top_k=" in refused(client.post("/tags", files={"file": CLIP}, data={"top_k": "3"}))
    note = client.post("/embed", files={"file": CLIP}, data={"note": "x"})
    assert "no field 'note'" in refused(note)
    assert "curl -F file=@" in refused(client.post("/embed", files={"file": (None, CLIP)}))


def test_unknown_and_repeated_options(client: httpx.Client) -> None:
    near = client.post("/embed?windows_ms=5", content=CLIP)
    detail = refused(near, 422, "invalid_request")
    assert "no option 'windows_ms'; choose from window_ms" in detail
    far = client.post("/tags?x=5", content=CLIP)
    assert "top_k" in refused(far, 422, "invalid_request")
    twice = client.post("/embed?taps=mel&taps=b5", content=CLIP)
    assert "'taps' is given 2 times" in refused(twice)


@pytest.mark.parametrize(
    "body",
    [
        form() * 2,  # an epilogue
        form() + bytes(3_000_000),
        form(b"x: " + bytes(3_000_000)),
        form(b"\r\n".join([b"x: y"] * 100_000)),
        b"--X\r\nnonsense" + bytes(3_000_000),
        b"".join(form()[:-5] + b"\r\n" for _ in range(20)) + bytes(3_000_000),
        form(data=bytes(3_000_000)).replace(b'filename="a.wav"', b"x=y"),
    ],
    ids=["two forms", "epilogue", "long head", "many heads", "nonsense", "parts", "long field"],
)
def test_a_bad_form_is_read_to_its_end(port: int, body: bytes) -> None:
    """The answer comes after the upload, and the connection serves the next request."""
    head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=X\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = connection.recv(65536)
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 200 "))
        assert b"connection: close" not in answer
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_two_long_files_are_answered_and_the_connection_stays(client: httpx.Client) -> None:
    long = wav(40 * RATE)
    for _ in range(2):
        response = client.post("/embed", files=[("file", long), ("file", long)])
        refused(response)
        assert "connection" not in response.headers


CHARSETS = ("undefined", "idna", "punycode", "hex", "rot13", "utf-16", "nose", "utf-8\0", "mbcs")


@pytest.mark.parametrize("charset", CHARSETS)
def test_a_charset_that_cannot_be_read(client: httpx.Client, charset: str) -> None:
    content_type = f"multipart/form-data; boundary=X; charset={charset.replace(chr(0), '%00')}"
    response = client.post("/embed", content=form(), headers={"content-type": content_type})
    assert "charset" in refused(response)


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf8"', "us-ascii", "iso-8859-1"])
def test_a_charset_that_can(client: httpx.Client, charset: str) -> None:
    content_type = f"multipart/form-data; boundary=X; charset={charset}"
    response = client.post("/embed", content=form(), headers={"content-type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize(
    "content_type",
    [
        b"multipart/form-data",
        b"multipart/form-data;",
        b"multipart/form-data; boundary=",
        b'multipart/form-data; boundary="',
        b"multipart/form-data; boundary*=utf-8''X",
        b"multipart/form-data; boundary*0=X",
        b"multipart/form-data; boundary=\xff\xfe",
        b"multipart/form-data; boundary=" + b"X" * 5000,
        b"multipart/form-data; charset=\xff; boundary=X",
        b"multipart/form-data; charset*=undefined''x; boundary=Y",
        b"Multipart/Form-Data ; BOUNDARY=Y",
    ],
)
def test_odd_content_types_are_the_clients_fault(client: httpx.Client, content_type: bytes) -> None:
    refused(client.post("/embed", content=form(), headers={b"content-type": content_type}))


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (HEAD + b"\r\ncontent-type: text/plain; charset=undefined", 200),
        (HEAD + b"\r\ncontent-type: \xff\xfe", 200),
        (HEAD + b"\r\ncontent-transfer-encoding: binary", 200),
        (HEAD + b"\r\nContent-Transfer-Encoding: base64", 400),
        (HEAD + b"\r\ncontent-transfer-encoding: quoted-printable", 400),
        (HEAD.replace(b"a.wav", b"\xff\xfe\x00.wav"), 200),
        (HEAD.replace(b"a.wav", b"../../etc/passwd"), 200),
        (HEAD.replace(b"filename=", b"filename*=utf-8''"), 400),
        (HEAD.replace(b"name=", b"nose="), 400),
        (b"content-disposition: attachment", 400),
        (b"x-nothing: 1", 400),
        (b"", 400),
    ],
)
def test_odd_heads_of_parts(client: httpx.Client, head: bytes, status: int) -> None:
    headers = {"content-type": "multipart/form-data; boundary=X"}
    response = client.post("/embed", content=form(head), headers=headers)
    assert response.status_code == status, response.text
    if status != 200:
        refused(response)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP", "x"])
def test_a_compressed_body_is_refused(client: httpx.Client, encoding: str) -> None:
    for path in ("/embed", "/tags", "/events", "/timestamps"):
        response = client.post(path, content=CLIP, headers={"content-encoding": encoding})
        assert "Content-Encoding" in refused(response, 415, "unsupported_encoding")
    plain = client.post("/embed", content=CLIP, headers={"content-encoding": "identity"})
    assert plain.status_code == 200


def test_who_waits_for_100_continue_gets_it_or_the_answer(port: int) -> None:
    head = (
        b"POST /embed HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n%b\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head % (len(CLIP), b""))
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(CLIP)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head % (40_000_000, b"origin: http://evil.org\r\n"))
        assert connection.recv(65536).startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize("accept", ["application/json;q=nan", "application/json;q=-1", "*/*;q=1_0"])
def test_a_quality_that_is_none_accepts_nothing(client: httpx.Client, accept: str) -> None:
    response = client.post("/embed", content=CLIP, headers={"accept": accept})
    refused(response, 406, "not_acceptable")


def test_several_accept_headers_are_one_list(client: httpx.Client) -> None:
    headers = [("accept", "text/html"), ("accept", "application/x-npy")]
    answer = client.post("/embed", content=CLIP, headers=headers)
    assert answer.headers["content-type"] == "application/x-npy"
