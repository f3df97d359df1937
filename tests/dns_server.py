"""A DNS server for the tests, by twisted.names, on UDP and TCP of one free port of 127.0.0.1. A program of its own:

    python dns_server.py LOG

prints the port, and writes each query to the file LOG, as in "udp AAAA both.test". It ends with its standard input.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import defer, stdio
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.protocol import Protocol
from twisted.names import dns, server

A, AAAA, SRV, TXT, CNAME = dns.A, dns.AAAA, dns.SRV, dns.TXT, dns.CNAME
REFUSED, SILENCE, FAILURE = "REFUSED", "SILENCE", "SERVFAIL"

ZONE: dict[str, dict[int, Any]] = {
    "both.test": {A: [dns.Record_A("127.0.0.2")], AAAA: [dns.Record_AAAA("::1")]},
    "four.test": {A: [dns.Record_A("127.0.0.3"), dns.Record_A("127.0.0.4")]},
    "home.test": {A: [dns.Record_A("127.0.0.1")]},
    "six.test": {AAAA: [dns.Record_AAAA("::1")]},
    "six-refused.test": {A: [dns.Record_A("127.0.0.5")], AAAA: REFUSED},
    "four-failed.test": {A: FAILURE, AAAA: [dns.Record_AAAA("::1")]},
    "six-silent.test": {A: [dns.Record_A("127.0.0.6")], AAAA: SILENCE},
    "many.test": {A: [dns.Record_A(f"127.1.{n}.1") for n in range(200)]},
    "alias.test": {
        kind: [dns.Record_CNAME("both.test"), record]
        for kind, record in ((A, dns.Record_A("127.0.0.2")), (AAAA, dns.Record_AAAA("::1")))
    },
    "refused.test": dict.fromkeys((A, AAAA, SRV, TXT), REFUSED),
    "failed.test": dict.fromkeys((A, AAAA, SRV, TXT), FAILURE),
    "silent.test": dict.fromkeys((A, AAAA, SRV, TXT), SILENCE),
    "mail.test": {99: []},  # it is there, and has none of what is asked for
    "_http._tcp.test": {
        SRV: [dns.Record_SRV(10, 60, 8080, "a.test"), dns.Record_SRV(20, 0, 8081, "b.test")],
    },
    "_none._tcp.test": {SRV: [dns.Record_SRV(0, 0, 0, b"")]},
    "_bytes._tcp.test": {SRV: [dns.Record_SRV(0, 0, 80, b"\xff\xfe.test")]},
    "text.test": {TXT: [dns.Record_TXT(b"v=spf1 ", b"-all"), dns.Record_TXT("caf\xe9".encode())]},
    "bytes.test": {TXT: [dns.Record_TXT(b"\xff\x00x")]},
    "long.test": {TXT: [dns.Record_TXT(*(b"%03d" % n + b"x" * 200 for n in range(20)))]},
    "xn--bcher-kva.test": {A: [dns.Record_A("127.0.0.7")]},
}


class Factory(server.DNSServerFactory):
    log: Any

    def handleQuery(self, message: Any, protocol: Any, address: Any) -> Any:
        query = message.queries[0]
        name = query.name.name.decode().lower()
        kind = dns.QUERY_TYPES.get(query.type, str(query.type))
        self.log.write(f"{'udp' if address else 'tcp'} {kind} {name}\n")
        answer, rcode = self.look_up(name, query.type)
        if answer == SILENCE:
            return defer.Deferred()
        headers = [dns.RRHeader(query.name.name, record.TYPE, dns.IN, 60, record, auth=True) for record in answer]
        reply = dns.Message(message.id, answer=1, recDes=message.recDes, recAv=1, rCode=rcode)
        reply.maxSize = 0
        reply.queries = message.queries
        reply.answers = headers
        if address:
            if len(reply.toStr()) > 512:  # Twisted would cut a record in two
                reply.answers, reply.trunc = [], 1
            protocol.writeMessage(reply, address)
        else:
            protocol.writeMessage(reply)
        return defer.succeed(None)

    def look_up(self, name: str, kind: int) -> tuple[Any, int]:
        if name.startswith("n") and name.endswith(".numbers.test"):  # n5.numbers.test: 127.2.0.5
            number = int(name.partition(".")[0][1:])
            return ([dns.Record_A(f"127.2.{number >> 8}.{number & 255}")] if kind == A else []), dns.OK
        if name not in ZONE:
            return [], dns.ENAME
        records = ZONE[name].get(kind, [])
        if records == SILENCE:
            return SILENCE, dns.OK
        if isinstance(records, str):
            return [], {REFUSED: dns.EREFUSED, FAILURE: dns.ESERVER}[records]
        return records, dns.OK


reactor = EPollReactor()


class EndsWithInput(Protocol):
    def connectionLost(self, reason: Any = None) -> None:
        reactor.stop()


def main() -> None:
    factory = Factory(clients=[])
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    number = port.getHost().port
    reactor.listenUDP(number, dns.DNSDatagramProtocol(factory, reactor=reactor), interface="127.0.0.1")
    stdio.StandardIO(EndsWithInput(), reactor=reactor)
    with open(sys.argv[1], "a", buffering=1) as factory.log:
        print(number, flush=True)
        reactor.run()


if __name__ == "__main__":
    main()
