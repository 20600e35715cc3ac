"""The fleet as it is: each request that waits holds a connection to the database, which listens.

    DATABASE_URL=postgres://… python3 server.py [PORT]
"""

import os
import select
import sys

import psycopg2
from flask import Flask, request

DATABASE_URL = os.environ.get("DATABASE_URL", "postgres://postgres@127.0.0.1:8482/postgres")

app = Flask(__name__)


@app.post("/vm_startup")
def vm_startup():
    hostname = (request.get_json(silent=True) or {}).get("hostname")
    if not hostname:
        return {"error": "Hostname is required."}, 400
    return by_listen(hostname)


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
