"""Who may ask: names of the server, pages in browsers, keys; and settings that make no sense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from service.__main__ import serve
from service.access import Hosts
from service.errors import HostNotAllowed
from service.settings import Settings, faults
from tests.service_kit import RATE, fake_app, running, settings, state_of, wav

CLIP = wav(RATE // 10)
PAGE = "https://page.example.org"


def goes_by(name: str, **changes: Any) -> bool:
    try:
        Hosts(settings(**{"allowed_hosts": (), **changes})).check([name])
    except HostNotAllowed:
        return False
    return True


ALWAYS = (
    *("localhost", "LocalHost:8000", "localhost.:80", "embedder.localhost", ""),
    *("127.0.0.1:8000", "[::1]:8000", "[::1]", "10.1.2.3:8000"),
)
NEVER = (
    *("evil.example.org", "evil.example.org:8000", "localhost.evil.org", "127.0.0.1.evil.org"),
    *("notlocalhost.org", "a:b:c", "[::1", "::1", "localhost:8000:1", "x y.org", "e@127.0.0.1"),
)


@pytest.mark.parametrize("name", ALWAYS)
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::"])
def test_addresses_and_localhost_are_always_allowed(name: str, host: str) -> None:
    assert goes_by(name, host=host)


@pytest.mark.parametrize("name", NEVER)
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::"])
def test_names_that_anybody_can_own_are_not(name: str, host: str) -> None:
    assert not goes_by(name, host=host)


@pytest.mark.parametrize("name", ["server:8000", "embedder.local", "a.b.internal", "x.home.arpa"])
def test_private_names_are_allowed_where_the_network_is_served(name: str) -> None:
    assert goes_by(name, host="0.0.0.0")
    assert not goes_by(name, host="127.0.0.1")


def test_more_names_by_setting() -> None:
    assert goes_by("anything.at.all", allowed_hosts=("*",))
    assert goes_by("sound.example.org:443", allowed_hosts=("sound.example.org",))
    assert not goes_by("a.sound.example.org", allowed_hosts=("sound.example.org",))
    assert goes_by("a.example.org", allowed_hosts="b.org, *.example.org")
    assert not goes_by("example.org", allowed_hosts=("*.example.org",))
    assert not goes_by("server", host="0.0.0.0", allowed_hosts=("sound.example.org",))
    assert goes_by("Sound.lan", host="sound.lan")
    # A page that goes by such a name does not know the key.
    assert goes_by("evil.example.org", api_key="sesame")
    assert not goes_by("evil.example.org", api_key="sesame", allowed_hosts=("sound.lan",))


@pytest.mark.anyio
async def test_a_rebound_name_is_refused_everywhere() -> None:
    async with running(fake_app(allowed_hosts=())) as client:
        for method, path in (("POST", "/embed"), ("GET", "/"), ("GET", "/info"), ("GET", "/x")):
            refused = await client.request(method, path, headers={"host": "evil.example.org"})
            body = refused.json()
            assert (refused.status_code, body["code"]) == (421, "host_not_allowed")
            assert "EMBEDDER_ALLOWED_HOSTS" in body["detail"]
        openai = await client.get("/v1/models", headers={"host": "evil.example.org"})
        assert openai.json()["error"]["code"] == "host_not_allowed"
        for path in ("/livez", "/readyz", "/metrics"):
            probe = await client.get(path, headers={"host": "10.42.0.7:8000"})
            assert probe.status_code == 200
        two = [("host", "localhost"), ("host", "evil.example.org")]
        assert (await client.get("/livez", headers=two)).status_code == 421


FOREIGN: list[dict[str, str]] = [
    {"origin": PAGE},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost"},
    {"origin": "file://"},
    {"origin": PAGE, "sec-fetch-site": "cross-site"},
    {"origin": "http://localhost:3000", "sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
    {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
]
OWN: list[dict[str, str]] = [
    {},
    {"origin": "http://localhost:8000"},
    {"origin": "HTTP://LOCALHOST:8000", "sec-fetch-site": "same-origin"},
    {"origin": "null", "sec-fetch-site": "same-origin"},
    {"sec-fetch-site": "none", "sec-fetch-mode": "navigate"},
    {"sec-fetch-site": "same-origin"},
]


async def post(client: httpx.AsyncClient, headers: dict[str, str]) -> httpx.Response:
    headers = {"host": "localhost:8000", **headers}
    return await client.post("/embed", content=CLIP, headers=headers)


@pytest.mark.anyio
async def test_pages_of_other_origins_cannot_make_this_server_work() -> None:
    async with running(fake_app()) as client:
        for headers in FOREIGN:
            refused = await post(client, headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "origin_not_allowed")
            assert "EMBEDDER_CORS_ORIGINS" in refused.json()["detail"]
        for headers in OWN:
            assert (await post(client, headers)).status_code == 200
        link = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
        assert (await client.get("/", headers=link)).status_code == 200
        image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
        assert (await client.get("/info", headers=image)).status_code == 403


@pytest.mark.anyio
async def test_a_port_that_is_the_schemes_own_may_be_missing() -> None:
    async with running(fake_app()) as client:
        for host, origin in (("a.org", "https://a.org:443"), ("a.org:80", "http://a.org")):
            assert (await post(client, {"host": host, "origin": origin})).status_code == 200
        assert (await post(client, {"host": "a.org", "origin": "http://a.org:443"})).is_error


PREFLIGHT = {
    "origin": PAGE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, x-stainless-os",
}


@pytest.mark.anyio
async def test_pages_that_the_setting_names_may_ask() -> None:
    async with running(fake_app(cors_origins=PAGE)) as client:
        headers = {"origin": PAGE, "sec-fetch-site": "cross-site"}
        answer = await post(client, headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "X-Cache" in answer.headers["access-control-expose-headers"]
        wrong = await client.post("/embed?kind=nose", content=CLIP, headers=headers)
        assert wrong.headers["access-control-allow-origin"] == PAGE
        ahead = await client.options("/embed", headers=PREFLIGHT)
        assert ahead.status_code == 200
        assert "x-stainless-os" in ahead.headers["access-control-allow-headers"]
        for other in FOREIGN[1:5]:
            assert (await post(client, other)).status_code == 403
            assert (await client.options("/embed", headers=PREFLIGHT | other)).status_code == 403
    async with running(fake_app(cors_origins="*")) as client:
        answer = await post(client, {"origin": "https://else.org", "sec-fetch-site": "cross-site"})
        assert answer.headers["access-control-allow-origin"] == "*"


@pytest.mark.anyio
async def test_pages_can_read_a_500_and_a_408_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unfinished() -> AsyncIterator[bytes]:
        yield CLIP[:100]
        await asyncio.Event().wait()

    app = fake_app(cors_origins=PAGE, body_seconds=0.2)
    async with running(app) as client:
        headers = {"origin": PAGE, "sec-fetch-site": "cross-site"}
        late = await client.post("/embed", content=unfinished(), headers=headers)
        monkeypatch.setattr(state_of(app), "check_ready", lambda: 1 / 0)
        bug = await post(client, headers)
        own = await post(client, {})
    assert (late.status_code, bug.status_code) == (408, 500)
    for answer in (late, bug):
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert "Server-Timing" in answer.headers["access-control-expose-headers"]
        assert "server-timing" in answer.headers
    assert "access-control-allow-origin" not in own.headers


@pytest.mark.anyio
async def test_without_the_setting_no_page_is_told_that_it_may() -> None:
    async with running(fake_app()) as client:
        ahead = await client.options("/embed", headers=PREFLIGHT)
        assert ahead.status_code == 403
        answers = [ahead, await post(client, {"origin": "http://localhost:8000"})]
        assert not any("access-control" in name for answer in answers for name in answer.headers)


@pytest.mark.anyio
async def test_each_of_several_keys_will_do() -> None:
    async with running(fake_app(api_key="s\u00f6se", api_keys="open, sesame")) as client:
        for key in ("s\u00f6se", "open", "sesame"):
            headers = {b"authorization": f"Bearer {key}".encode()}
            assert (await client.get("/info", headers=headers)).status_code == 200
        for key in ("open, sesame", "open,sesame", "", "se", "sesamee", "s\u00f6s\u00e9"):
            headers = {b"authorization": f"Bearer {key}".encode()}
            assert (await client.get("/info", headers=headers)).status_code == 401


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("API_KEY", "", "empty"),
        ("API_KEY", "two words", "white space"),
        ("API_KEYS", "", "empty"),
        ("API_KEYS", " , ", "empty"),
        ("API_KEYS", "good,not good", "white space"),
        ("ALLOWED_HOSTS", "https://example.org", "example.org"),
        ("ALLOWED_HOSTS", "example.org:8000", "example.org"),
        ("ALLOWED_HOSTS", "a.*.org", "a.*.org"),
        ("CORS_ORIGINS", "example.org", "https://example.org"),
        ("CORS_ORIGINS", "https://example.org/page", "https://example.org"),
        ("PORT", "http", "integer"),
        ("PORT", "99999", "65535"),
        ("REDIS_URL", "http://user:secret@nowhere", "redis"),
    ],
)
def test_a_setting_that_makes_no_sense_is_one_line(
    variable: str,
    value: str,
    complaint: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(f"EMBEDDER_{variable}", value)
    assert serve() == 2
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"EMBEDDER_{variable}")
    assert complaint in line
    assert "\n" not in line
    assert "Traceback" not in caplog.text


def test_every_wrong_setting_is_told_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBEDDER_PORT", "-1")
    monkeypatch.setenv("EMBEDDER_API_KEY", "open sesame")
    with pytest.raises(ValidationError) as caught:
        Settings()
    lines = faults(caught.value)
    assert [line.partition(":")[0] for line in lines] == ["EMBEDDER_PORT=-1", "EMBEDDER_API_KEY"]
    assert "sesame" not in "".join(lines)
