"""A VM that starts, asks what it is there for, and waits until it is told.

    python3 client.py [HOSTNAME] [URL]

It does not know who answers: the application, or a broker by an endpoint of its own.
"""

import random
import socket
import sys
import time

import requests

# Whoever waits for longer asks again: a proxy may have forgotten the connection.
TIMEOUT_S = (10, 3600)


def startup(hostname, url):
    while True:
        try:
            answer = requests.post(url + "/vm_startup", json={"hostname": hostname}, timeout=TIMEOUT_S)
            answer.raise_for_status()
            assignment = answer.json()
            return assignment["command"], assignment["pin"]
        except (requests.RequestException, ValueError, KeyError) as error:
            print(f"{error!r}; asking again", file=sys.stderr)
            # Many lost the server at the same moment.
            time.sleep(random.uniform(0.5, 5))


if __name__ == "__main__":
    hostname = sys.argv[1] if len(sys.argv) > 1 else socket.gethostname()
    url = sys.argv[2] if len(sys.argv) > 2 else "http://127.0.0.1:5000"
    command, pin = startup(hostname, url)
    print(f"{command} (pin {pin})", flush=True)
