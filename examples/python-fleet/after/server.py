"""The same with a part of the fleet on walcast: their requests wait at the broker, and hold nothing of the database.

    DATABASE_URL=postgres://… WALCAST_PERCENT=5 python3 server.py [PORT]

WALCAST_PERCENT=0 is the way back: then nobody asks the broker.
"""

import os
import select
import sys

import psycopg2
import walcast
from flask import Flask, request

DATABASE_URL = os.environ.get("DATABASE_URL", "postgres://postgres@127.0.0.1:8482/postgres")
WALCAST_URLS = os.environ.get("WALCAST_URLS", "http://127.0.0.1:8480").split(",")
WALCAST_PERCENT = float(os.environ.get("WALCAST_PERCENT", "0"))

app = Flask(__name__)


@app.post("/vm_startup")
def vm_startup():
    hostname = (request.get_json(silent=True) or {}).get("hostname")
    if not hostname:
        return {"error": "Hostname is required."}, 400
    # The same hosts each time, on every server; and those of 5 % are among those of 25 %.
    if walcast.picks(WALCAST_PERCENT, hostname, salt="walcast"):
        return by_walcast(hostname)
    return by_listen(hostname)


def by_walcast(hostname):
    topic = "vm/" + walcast.segment(hostname)
    vm = walcast.state(WALCAST_URLS, topic, client=hostname)
    while vm is not None:
        command, pin = vm.data["crdcommand"], vm.data["pin"]
        if command is not None and pin is not None:
            return {"status": "success", "command": command, "pin": pin}
        # The row as it was goes with the question, so nothing falls between.
        later = walcast.state(WALCAST_URLS, topic, wait=50, unless=vm.cursor, client=hostname)
        vm = vm if later is walcast.UNCHANGED else later
    return {"error": "VM not found."}, 404


def by_listen(hostname):
    db = psycopg2.connect(DATABASE_URL)
    try:
        db.autocommit = True
        with db.cursor() as cursor:
            # Before the row is read, so that nothing falls between.
            cursor.execute("LISTEN vm_assigned")
            while True:
                cursor.execute("SELECT crdcommand, pin FROM vms WHERE hostname = %s", (hostname,))
                row = cursor.fetchone()
                if row is None:
                    return {"error": "VM not found."}, 404
                command, pin = row
                if command is not None and pin is not None:
                    return {"status": "success", "command": command, "pin": pin}
                hear(db, hostname)
    finally:
        db.close()


def hear(db, hostname):
    """Waits until this VM is spoken of. Every assignment wakes the connections of all that wait."""
    while True:
        select.select([db], [], [])
        db.poll()
        heard = [notify.payload for notify in db.notifies]
        db.notifies.clear()
        if hostname in heard:
            return


if __name__ == "__main__":
    app.run(port=int(sys.argv[1]) if len(sys.argv) > 1 else 5000, threaded=True)
