"""Assigns a VM, and tells who waits for it.

    DATABASE_URL=postgres://… python3 allocate.py HOSTNAME COMMAND PIN
"""

import os
import sys

import psycopg2

DATABASE_URL = os.environ.get("DATABASE_URL", "postgres://postgres@127.0.0.1:8482/postgres")


def allocate(hostname, command, pin):
    db = psycopg2.connect(DATABASE_URL)
    try:
        # One transaction, which commits at the end of the block.
        with db, db.cursor() as cursor:
            cursor.execute("UPDATE vms SET crdcommand = %s, pin = %s WHERE hostname = %s", (command, pin, hostname))
            if cursor.rowcount == 0:
                sys.exit(f"there is no VM {hostname}")
            cursor.execute("SELECT pg_notify('vm_assigned', %s)", (hostname,))
    finally:
        db.close()


if __name__ == "__main__":
    allocate(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    print(f"assigned {sys.argv[1]}")
