"""walcast from Python: follow topics, read current values, publish. One file to copy into a project; needs requests.

    import walcast

    for event in walcast.follow("http://127.0.0.1:8480", ["vm/host-17"], cursor_file="/var/lib/agent/cursor"):
        if isinstance(event, walcast.Reset):
            forget_all()              # events may be missing; what is so now follows
        else:
            act(event.op, event.topic, event.data)

Wherever a URL is taken, a list of URLs names brokers of one source: when one fails, the next is asked. Everything is
plain long-poll, which passes any proxy. What repeating does not change (a wrong topic, a token that is not known) is
raised as Refused at once; everything else is tried again, after pauses that are random over their whole length, and
told to the logger "walcast" once. It wants Python 3.9 or newer.
"""

import argparse
import collections
import json
import logging
import os
import random
import sys
import time
import unicodedata
import urllib.parse
import uuid

import requests

__all__ = ["Error", "Event", "Published", "Refused", "Reset", "UNCHANGED", "Unavailable", "Value", "follow", "picks", "publish",
           "segment", "state"]

log = logging.getLogger("walcast")

CONNECT_TIMEOUT_S = 10
# How long a question is held: less than what proxies take for silence.
HOLD_S = 50
# The first pause lasts up to PAUSE_MIN_S, each further one up to twice as long, and none longer than PAUSE_MAX_S.
PAUSE_MIN_S = 0.2
PAUSE_MAX_S = 30
# Nobody is believed who wants to be left alone for longer.
RETRY_AFTER_MAX_S = 300
# How long publish() and state() go on while all brokers fail.
PATIENCE_S = 60
# While events come without a pause, their place is kept so often.
SAVE_EVERY_S = 1.0

Value = collections.namedtuple("Value", "data cursor")
Value.__doc__ = "A current value, and its version: present that as `unless` to wait for another."

Published = collections.namedtuple("Published", "xid duplicate")
Published.__doc__ = """The transaction, as the event carries it; and whether an attempt before this one, by this call or
another with its key, had published it already."""

Reset = collections.namedtuple("Reset", "reason cursor")
Reset.__doc__ = """Events may be missing before what follows: the current values of state topics, and the events that
are still held, which may have been told before."""

UNCHANGED = type("Unchanged", (), {"__repr__": lambda self: "UNCHANGED"})()


class Event:
    """Something happened; or, with the op "snapshot", is so. `raw` is the whole object as the broker sent it."""

    def __init__(self, raw):
        self.raw = raw
        self.topic, self.op, self.data, self.cursor = raw["topic"], raw["op"], raw["data"], raw["cursor"]

    def __repr__(self):
        return f"Event({self.op} {self.topic} {self.data!r})"


class Error(Exception):
    """Whatever this module raises."""


class Unavailable(Error):
    """No broker answered for as long as it was tried."""


class Refused(Error):
    """A broker refused, and would again. `code` is the protocol's, such as "forbidden"."""

    def __init__(self, url, status, code, detail):
        super().__init__(f"{url} refused with {status} ({code}): {detail}")
        self.status, self.code, self.detail = status, code, detail


class _Bearer(requests.auth.AuthBase):
    """Not a plain header: requests would put what a .netrc says in its place."""

    def __init__(self, token):
        self.token = token

    def __call__(self, request):
        request.headers["Authorization"] = "Bearer " + self.token
        return request


class _Brokers:
    """Asks one after the other until one answers."""

    def __init__(self, url, token, patience=None):
        urls = [url] if isinstance(url, str) else list(url)
        self.urls = [url.rstrip("/") for url in urls]
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url}: the URL of a broker begins with http:// or https://")
        # So that not all clients crowd on the first.
        random.shuffle(self.urls)
        self.http = requests.Session()
        self.http.auth = _Bearer(token) if token else None
        self.failed = self.rounds = 0
        self.hint = None
        self.until = None if patience is None else time.monotonic() + patience

    def ask(self, method, path, ours, hold=0, **request):
        """The answer and what it says: a 200 of which `ours` says that a broker made it, or a 304, 404 or 410."""
        while True:
            url, hint = self.urls[0], None
            try:
                answer = self.http.request(method, url + path, timeout=(CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S + hold),
                                           allow_redirects=False, **request)
                why, hint = f"{url} answered with {answer.status_code}", _retry_after(answer)
                if answer.status_code == 200:
                    # Half an answer is none, and what a proxy has to say is none either.
                    body = json.loads(answer.content)
                    if ours(answer, body):
                        self.rounds = 0
                        return answer, body
                    why = f"what {url} answered is not walcast's"
                elif answer.status_code == 304:
                    return answer, None
                elif 300 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                    problem = _problem(answer)
                    if answer.status_code in (404, 410) and "code" in problem:
                        return answer, problem
                    detail = problem.get("detail", answer.reason)
                    raise Refused(url, answer.status_code, problem.get("code"), detail)
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError,
                    requests.exceptions.ContentDecodingError, json.JSONDecodeError, UnicodeDecodeError) as error:
                why = f"{url}: {error}"
            self.another(hint, why)

    def another(self, hint, why):
        """Goes to the next broker; after a round of failures with a pause."""
        self.urls.append(self.urls.pop(0))
        self.failed += 1
        if hint is not None:
            self.hint = hint if self.hint is None else min(self.hint, hint)
        if self.failed < len(self.urls):
            return
        at_least = min(self.hint or 0, RETRY_AFTER_MAX_S)
        # All are told the same time to come back, and must not come back at the same time.
        longest = max(min(PAUSE_MIN_S * 2 ** min(self.rounds, 16), PAUSE_MAX_S), at_least / 2)
        pause = at_least + random.uniform(0, longest)
        if self.rounds == 0:
            log.warning("%s; trying on", why)
        self.failed, self.hint = 0, None
        self.rounds += 1
        if self.until is not None and time.monotonic() + pause >= self.until:
            raise Unavailable(why)
        time.sleep(pause)


def _problem(answer):
    """What the broker said is wrong; empty if it was somebody else."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {}


def _retry_after(answer):
    try:
        return max(0.0, float(answer.headers["Retry-After"]))
    except (KeyError, ValueError):
        return None


def _is_page(_, body):
    return isinstance(body, dict) and "events" in body and "cursor" in body


def _is_place(cursor):
    """Whether one may go on from there; else it says "from the beginning", as the cursor of a reset does."""
    return not cursor.endswith("-" * 21)


def follow(url, topics, after=None, cursor_file=None, token=None, client=None, hold=HOLD_S):
    """Follows topics and patterns: an iterator over Event and Reset that ends with an exception only.

    Each event comes once and in order, over cuts and other brokers. It begins behind what `cursor_file` holds, if it
    holds something, else at `after`: a cursor, "now", "earliest", or None for current values first. A place is kept
    when the next event is asked for, which says that the last one is done: after a crash, what may not have been
    finished comes again (while events come without a pause, up to a second of them). See Follow.save. `client` is the
    name under which the broker lists who waits, `hold` the seconds for which it holds a question.
    """
    return Follow(url, topics, after, cursor_file, token, client, hold)


class Follow:
    """The iterator that follow() makes. `cursor` is the place behind what was handed out and is done."""

    def __init__(self, url, topics, after, cursor_file, token, client, hold):
        self._brokers = _Brokers(url, token)
        self._query = [("topic", topic) for topic in ([topics] if isinstance(topics, str) else topics)]
        if client:
            self._query.append(("client", client))
        self._hold, self._file = hold, cursor_file
        if cursor_file and not os.path.isdir(os.path.dirname(cursor_file) or "."):
            raise ValueError(f"{cursor_file}: there is no such folder")
        self.cursor = _load(cursor_file) or after
        self._saved, self._saved_at = self.cursor, time.monotonic()
        # What was handed out last, what is still to be handed out, each with the place behind it, if there is one.
        self._out, self._ready = None, collections.deque()
        # The place of the next question; further on than what was handed out.
        self._asked = self.cursor

    def __iter__(self):
        return self

    def __next__(self):
        self._done()
        if self._ready and time.monotonic() - self._saved_at >= SAVE_EVERY_S:
            self._keep()
        while not self._ready:
            self._keep()
            self._ask()
        item, self._out = self._ready.popleft()
        return item

    def save(self):
        """Keeps the place of now, everything that was handed out counting as done: for a program that ends in good
        order. In the middle of current values there is no place."""
        self._done()
        self._keep()

    def _done(self):
        if self._out is not None:
            self.cursor, self._out = self._out, None

    def _keep(self):
        if self._file and self.cursor != self._saved and self.cursor not in (None, "now", "earliest"):
            _store(self._file, self.cursor)
            self._saved = self.cursor
        self._saved_at = time.monotonic()

    def _ask(self):
        # The first answer comes at once: the cursor in it makes the next questions safe from cuts.
        known = self._asked not in (None, "now", "earliest")
        hold = self._hold if known else 0
        query = self._query + [("wait", str(hold))] + ([("after", self._asked)] if self._asked else [])
        answer, body = self._brokers.ask("GET", "/v1/events?" + urllib.parse.urlencode(query), _is_page, hold)
        if answer.status_code == 410 and "resume" in body:
            self._asked = body["resume"]
            self._ready.append((Reset(body["code"], body["resume"]), body["resume"]))
            return
        if answer.status_code != 200:
            raise Refused(answer.url, answer.status_code, body["code"], body.get("detail", ""))
        events, place = body["events"], body["cursor"]
        for event, behind in zip(events, events[1:] + [None]):
            # An answer holds whole units, and one ends where the cursor changes. A value's cursor is no place.
            ends = behind is not None and behind["cursor"] != event["cursor"] and event["op"] != "snapshot"
            self._ready.append((Event(event), event["cursor"] if ends else None))
        if _is_place(place):
            self._asked = place
            if events:
                self._ready[-1] = (self._ready[-1][0], place)
            else:
                self.cursor = place
        if "Retry-After" in answer.headers or not (events or _is_place(place)):
            self._brokers.another(_retry_after(answer), f"{answer.url}: the broker goes away")
        else:
            self._brokers.failed = 0


def state(url, topic, wait=0, unless=None, token=None, client=None):
    """The current value of a state topic as a Value; None if there is none.

    With `wait`, a number of seconds up to 300, it waits so long for one; with `unless`, the cursor of a Value, for
    another than that: UNCHANGED is the answer if there is none in time, and None, at once, if it has gone away.
    """
    path = "/v1/state/" + urllib.parse.quote(topic, safe="/")
    query = [("wait", str(wait))] + ([("client", client)] if client else [])
    headers = {"If-None-Match": f'"{unless}"'} if unless else {}
    brokers = _Brokers(url, token, PATIENCE_S + wait)
    answer, body = brokers.ask("GET", path + "?" + urllib.parse.urlencode(query),
                               lambda answer, _: "ETag" in answer.headers, wait, headers=headers)
    if answer.status_code == 304:
        return UNCHANGED
    if answer.status_code == 404 and body["code"] == "not_found":
        return None
    if answer.status_code != 200:
        raise Refused(answer.url, answer.status_code, body["code"], body.get("detail", ""))
    return Value(body, answer.headers["ETag"].removeprefix("W/").strip('"'))


def publish(url, topic, data, key=None, token=None):
    """Publishes `data` on `topic`, once, however often it has to be tried; it is committed when this returns. Give a
    `key` where the caller itself may be repeated: a key publishes once in 24 hours."""
    headers = {"Idempotency-Key": key or str(uuid.uuid4())}
    brokers = _Brokers(url, token, PATIENCE_S)
    answer, body = brokers.ask("POST", "/v1/publish", lambda _, body: isinstance(body, dict) and "duplicate" in body,
                               json={"topic": topic, "data": data}, headers=headers)
    if answer.status_code != 200:
        raise Refused(answer.url, answer.status_code, body["code"], body.get("detail", ""))
    return Published(body.get("xid"), body["duplicate"])


def segment(text):
    """Makes any text one segment of a topic, as rules of tables do: `"vm/" + segment(hostname)`."""
    if text in (".", ".."):
        return text.replace(".", "%2E")
    forbidden = "*#+?/%"
    return "".join("".join("%%%02X" % byte for byte in c.encode())
                   if c in forbidden or c.isspace() or unicodedata.category(c) == "Cc" else c for c in text)


def picks(percent, key, salt=""):
    """Whether `key`, such as a host name, is of the `percent` of a fleet that take part in what `salt` names.

    The same on every machine, and the same as walcast_client::Canary in Rust: FNV-1a over the salt, a zero byte and
    the key, mixed by MurmurHash3's fmix64; of that the upper 53 bits, as a number from 0 to 1.
    """
    mask = (1 << 64) - 1
    number = 0xCBF29CE484222325
    for byte in salt.encode() + b"\0" + key.encode():
        number = (number ^ byte) * 0x100000001B3 & mask
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        number = (number ^ number >> 33) * factor & mask
    number ^= number >> 33
    return (number >> 11) / (1 << 53) * 100.0 < percent


def _load(path):
    if not path:
        return None
    try:
        with open(path, encoding="ascii") as file:
            cursor = file.read().strip()
    except FileNotFoundError:
        return None
    if len(cursor) != 33:
        raise Error(f"{path} holds no cursor; remove it to begin anew")
    return cursor


def _store(path, cursor):
    """After a crash there is the old place or the new one."""
    with open(path + ".new", "w", encoding="ascii") as file:
        file.write(cursor + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".new", path)
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _json(text):
    try:
        return json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON: {error}") from None


def _main():
    parser = argparse.ArgumentParser(description="walcast from the command line; the token comes from WALCAST_TOKEN")
    parser.add_argument("--url", action="append", help="a broker (default: http://127.0.0.1:8480); may be repeated")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("follow", help="print events as JSON, one a line")
    command.add_argument("topics", nargs="+", metavar="TOPIC")
    command.add_argument("--after", help="a cursor, now or earliest")
    command.add_argument("--cursor-file")
    command = commands.add_parser("state", help="print the current value of a topic")
    command.add_argument("topic")
    command.add_argument("--wait", type=int, default=0, help="seconds to wait for one")
    command = commands.add_parser("publish", help="publish JSON")
    command.add_argument("topic")
    command.add_argument("data", type=_json, help="JSON, such as 7 or '{\"id\": 7}'")
    command.add_argument("--key", help="publish once with this key")
    args = parser.parse_args()
    urls, token = args.url or ["http://127.0.0.1:8480"], os.environ.get("WALCAST_TOKEN")
    if args.command == "follow":
        for event in follow(urls, args.topics, args.after, args.cursor_file, token):
            word = {"reset": event._asdict()} if isinstance(event, Reset) else event.raw
            print(json.dumps(word, ensure_ascii=False), flush=True)
    elif args.command == "state":
        value = state(urls, args.topic, args.wait, token=token)
        if value is None:
            sys.exit(f"{args.topic} has no value")
        print(json.dumps(value.data, ensure_ascii=False))
    else:
        print(json.dumps(publish(urls, args.topic, args.data, args.key, token)._asdict()))


if __name__ == "__main__":
    try:
        _main()
    except (Error, ValueError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        pass
