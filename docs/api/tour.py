"""A tour of the API with nothing but Python's standard library: a run is made, claimed and heard of; then its executor
falls silent, the run is reaped, the executor is fenced, and anyone can read why.

    lastbeat serve &
    python3 docs/api/tour.py [http://127.0.0.1:7171]

LASTBEAT_TOKEN: a token, where the server has any. It takes one that may do it all: role admin.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
import uuid

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:7171"


class Refused(Exception):
    """The server refused: `problem` is its document, with a `code` that programs can rely on."""

    def __init__(self, problem):
        super().__init__(problem["detail"])
        self.problem = problem


def api(method, path, body=None, key=None):
    """Calls the API and returns the document that it answers with; None where there is none.

    With a `key` the request may be sent again when its answer was lost: it gets the first answer.
    """
    headers = {"Content-Type": "application/json"}
    if token := os.environ.get("LASTBEAT_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    if key:
        headers["Idempotency-Key"] = key
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{SERVER}/v1{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            text = response.read()
    except urllib.error.HTTPError as error:
        raise Refused(json.load(error)) from None
    return json.loads(text) if text else None


def main():
    lane = f"tour-{uuid.uuid4().hex[:8]}"
    goal = f"{lane}-goal"

    # A lane in which silence is noticed soon. What is left out takes its default.
    policy = {"heartbeat_interval_seconds": 0.5, "heartbeat_window_seconds": 1.5}
    window = api("PUT", f"/lanes/{lane}", policy)["policy"]["heartbeat_window_seconds"]
    print(f"lane {lane}: silent for {window} s is too long")

    new = {"lane": lane, "goal": goal, "input": {"page": 7}}
    run = api("POST", "/runs", new, key=str(uuid.uuid4()))["run"]
    print(f"created {run}")

    # An executor takes the next run of the lane; it would wait for one for up to 5 seconds. The attempt and the claim
    # are its fencing token: whatever it says of the run later, it says it with these.
    wanted = {"executor": "python-1", "lanes": [lane], "wait_seconds": 5}
    claimed = api("POST", "/claims", wanted, key=str(uuid.uuid4()))
    token = {"attempt": claimed["attempt"], "claim": claimed["claim"]}
    print(f"claimed by {claimed['executor']}, attempt {claimed['attempt']}, to work on {claimed['input']}")

    # It works, and says so.
    for done in range(1, 4):
        heard = api("POST", f"/runs/{run}/heartbeat", {**token, "progress": {"done": done, "total": 3}})
        print(f"beat: {heard['directive']}, the next one within {heard['next_beat_within_seconds']} s")
        time.sleep(0.4)
    print(f"the goal is {api('GET', f'/goals/{goal}')['status']}")

    # It says no more. Nobody has to ask for the run to be reaped.
    print("silent now")
    while api("GET", f"/runs/{run}")["status"] != "timed_out":
        time.sleep(0.2)
    print(f"the goal is {api('GET', f'/goals/{goal}')['status']}")

    # It comes back, and learns that the run is not its own any more.
    try:
        api("POST", f"/runs/{run}/heartbeat", token)
    except Refused as refused:
        problem = refused.problem
        print(f"refused: {problem['status']} {problem['code']}, directive {problem['directive']}")

    # And why?
    print(api("GET", f"/runs/{run}/why")["message"])


if __name__ == "__main__":
    main()
