#!/bin/sh
# A tour of the API with nothing but curl and jq: a run is made, claimed and heard of; then its executor falls silent,
# the run is reaped, the executor is fenced, and anyone can read why.
#
#   lastbeat serve &
#   sh docs/api/tour.sh [http://127.0.0.1:7171]
#
# LASTBEAT_TOKEN: a token, where the server has any. It takes one that may do it all: role admin.
set -eu

server=${1:-http://127.0.0.1:7171}
# Nobody else's, also where processes have the same numbers again and again, as they do in containers.
lane=tour-$(date +%s)-$$

# Calls the API and prints the document that it answers with: METHOD PATH [BODY [KEY]]. With a key the request may be sent
# again when its answer was lost: it gets the first answer.
ask() {
    curl --silent --show-error --request "$1" "$server/v1$2" \
        ${LASTBEAT_TOKEN:+--header "Authorization: Bearer $LASTBEAT_TOKEN"} \
        ${4:+--header "Idempotency-Key: $4"} \
        --header 'Content-Type: application/json' ${3:+--data "$3"}
}

# Does the same for what must not be refused. A refusal is a document too, with a code that programs can rely on; its
# status is a number there, and that of a run is a word.
api() {
    answer=$(ask "$@") || exit
    if printf '%s' "$answer" | jq --exit-status '.status | numbers' >/dev/null; then
        printf '%s' "$answer" | jq --raw-output '"refused: \(.status) \(.code): \(.detail)"' >&2
        exit 1
    fi
    printf '%s\n' "$answer"
}

# Says something of a document: DOCUMENT FILTER.
say() {
    printf '%s\n' "$1" | jq --raw-output "$2"
}

# A lane in which silence is noticed soon. What is left out takes its default.
policy=$(api PUT "/lanes/$lane" '{"heartbeat_interval_seconds": 0.5, "heartbeat_window_seconds": 1.5}')
say "$policy" '"lane \(.lane): silent for \(.policy.heartbeat_window_seconds) s is too long"'

created=$(api POST /runs "{\"lane\": \"$lane\", \"goal\": \"$lane-goal\", \"input\": {\"page\": 7}}" "$lane-run")
run=$(say "$created" .run)
echo "created $run"

# An executor takes the next run of the lane; it would wait for one for up to 5 seconds. The attempt and the claim are its
# fencing token: whatever it says of the run later, it says it with these.
claimed=$(api POST /claims "{\"executor\": \"curl-1\", \"lanes\": [\"$lane\"], \"wait_seconds\": 5}" "$lane-claim")
token=$(say "$claimed" '{attempt, claim} | tojson')
say "$claimed" '"claimed by \(.executor), attempt \(.attempt), to work on \(.input | tojson)"'

# It works, and says so.
for _ in 1 2 3; do
    heard=$(api POST "/runs/$run/heartbeat" "$token")
    say "$heard" '"beat: \(.directive), the next one within \(.next_beat_within_seconds) s"'
    sleep 0.4
done
goal=$(api GET "/goals/$lane-goal")
say "$goal" '"the goal is \(.status)"'

# It says no more. Nobody has to ask for the run to be reaped.
echo "silent now"
status=running
while [ "$status" != timed_out ]; do
    sleep 0.2
    now=$(api GET "/runs/$run")
    status=$(say "$now" .status)
done
goal=$(api GET "/goals/$lane-goal")
say "$goal" '"the goal is \(.status)"'

# It comes back, and learns that the run is not its own any more.
refusal=$(ask POST "/runs/$run/heartbeat" "$token")
say "$refusal" '"refused: \(.status) \(.code), directive \(.directive)"'

# And why?
why=$(api GET "/runs/$run/why")
say "$why" .message
