"""What every request passes: names of the server, the token, headers of safety; and what is counted."""

from __future__ import annotations

import hashlib
import hmac
import html
import re
import time
from urllib.parse import parse_qs, urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pcl_clora.serve.disk import sweep
from pcl_clora.serve.documentation import page
from pcl_clora.serve.refusals import Refusal
from pcl_clora.serve.service import Service
from pcl_clora.serve.settings import LOOPBACK
from pcl_clora.serve.uploads import drain

APP = "/app"
UPLOAD = "/app/gradio_api/upload"
COOKIE = "pcl_clora_token"
COUNTED = ("/predict", "/embed", "/health", "/metrics", "/docs", "/openapi.json")
OPEN = ("/health", "/login")  # what needs no token
LONGEST_LOGIN = 4096  # bytes
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'"
)
"""No page loads anything from, or sends anything to, another host; a browser holds it."""

_ELSEWHERE = re.compile(
    rb"""<(meta|link|script)\b[^>]*?=\s*["']?(https?:)?//[^>]*>(\s*</script>)?|<link[^>]*manifest[^>]*>""",
    re.I,
)
_ADDRESS = re.compile(rb"""https?://([^\s"'<>\\/]+)[^\s"'<>\\]*""")


class Guard:
    """Stands before an application.

    Args:
        app: the application.
        service: its settings, and where requests are counted.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service
        self.settings, self.metrics = service.settings, service.metrics
        names = set(self.settings.hostnames)
        self.names = names | {*LOOPBACK, "[::1]"} if self.settings.is_local or names else set()
        self.sign = hashlib.sha256(self.settings.token.encode()).hexdigest() if self.settings.token else ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it."""
        if scope["type"] == "websocket":  # nothing here speaks it
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, path, status = time.monotonic(), scope["path"], 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        request = Request(scope, receive)
        try:
            answer = await self._stop(request, path)
            foreign = path.startswith(APP)  # pages of others; ours hold no address, and names of users may
            own = ["host", "x-forwarded-host"] if foreign else []
            names = {request.headers.get(name, "").encode("latin-1") for name in own}
            safe = _Safe(counted, self.settings.is_local, names)
            if answer is not None:
                await drain(request)
                await answer(scope, receive, safe.send)
            else:
                if path == UPLOAD:
                    most = int(self.settings.max_disk_mib * 2**20)
                    await anyio.to_thread.run_sync(sweep, self.service.app_folder, most)
                await self.app(scope, receive, safe.send)
        finally:
            place = path if path in COUNTED else APP if path.startswith(APP) else "other"
            self.metrics.request(place, status, time.monotonic() - began)

    async def _stop(self, request: Request, path: str) -> Response | None:
        """Answer what may not pass; None for the rest."""
        headers, local, verb = request.headers, self.settings.is_local, request.method
        if self.names and _name(headers.get("host", "")) not in self.names:
            problem, remedy = (
                "the server is not known by this name",
                "ask by its own, or start it with --hostname",
            )
            return _refuse(Refusal(400, "wrong_host", problem, remedy))
        origin = headers.get("origin", "")
        if local and origin and _name(urlsplit(origin).netloc) not in self.names:
            return _refuse(Refusal(403, "wrong_origin", "a page of another host asks", "open /app instead"))
        if path == "/login" and verb == "POST":
            return await self._login(request)
        if self.settings.token and path not in OPEN and not self._knows(headers, request.cookies):
            if "text/html" in headers.get("accept", "") and verb == "GET":
                return HTMLResponse(login_page(), 401)
            problem, remedy = (
                "the token is missing or another one",
                "send Authorization: Bearer and the token",
            )
            return _refuse(Refusal(401, "no_token", problem, remedy))
        return None

    def _knows(self, headers: Headers, cookies: dict[str, str]) -> bool:
        kind, _, token = headers.get("authorization", "").partition(" ")
        given = token.strip() if kind.lower() == "bearer" else ""
        if given:
            return hmac.compare_digest(given.encode(), self.settings.token.encode())
        return hmac.compare_digest(cookies.get(COOKIE, "").encode(), self.sign.encode())

    async def _login(self, request: Request) -> Response:
        """Take the token of a form, and let the browser keep a sign that it knows it."""
        body = b""
        async for block in request.stream():
            body += block
            if len(body) > LONGEST_LOGIN:
                return HTMLResponse(login_page("That is too long."), 413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0]
        if not self.settings.token or not hmac.compare_digest(given.encode(), self.settings.token.encode()):
            return HTMLResponse(login_page("That is another token."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self.sign, httponly=True, samesite="strict")
        return answer


class _Safe:
    """Adds headers of safety to an answer, and takes addresses of other hosts out of a page.

    Args:
        send: where it goes.
        local: whether only this machine asks.
        names: of the server, where texts of the page are looked through too; empty for its head only.
    """

    def __init__(self, send: Send, local: bool, names: set[bytes]) -> None:
        self._send, self._local, self._names = send, local, names
        self._start: Message | None = None
        self._page = b""

    async def send(self, message: Message) -> None:
        """Pass a message on; a page is kept until it is whole."""
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["X-Content-Type-Options"] = "nosniff"
            headers["Referrer-Policy"] = "no-referrer"
            if headers.get("content-type", "").startswith("text/html"):
                local = "; frame-ancestors 'self'" if self._local else ""
                headers["Content-Security-Policy"] = POLICY + local
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            self._page += message.get("body", b"")
            if message.get("more_body"):
                return
            page, start = _ELSEWHERE.sub(b"", self._page), self._start
            if self._names:
                page = _ADDRESS.sub(lambda found: found[0] if found[1] in self._names else b"", page)
            self._start = None
            headers = MutableHeaders(scope=start)
            if "content-length" in headers:
                headers["content-length"] = str(len(page))
            await self._send(start)
            await self._send({"type": "http.response.body", "body": page})
            return
        await self._send(message)


def login_page(problem: str = "") -> str:
    """Make the page that asks for the token."""
    told = f"<p role='alert'>{html.escape(problem)}</p>" if problem else ""
    form = (
        "<form method='post' action='/login'><label>Token <input type='password' name='token' autofocus "
        "autocomplete='current-password'></label> <button>Open</button></form>"
    )
    return page("A token is needed", f"<h1>A token is needed</h1>{told}{form}")


def _name(host: str) -> str:
    """Take the port off the name of a host."""
    return re.sub(r":\d+$", "", host).lower()


def _refuse(refusal: Refusal) -> JSONResponse:
    return JSONResponse(refusal.as_json(), refusal.status, refusal.headers)
