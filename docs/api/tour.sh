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
lane=tour-$$

# Calls the API: METHOD PATH [BODY]. A refusal is a document too, with a code that programs can rely on.
api() {
    curl --silent --show-error --request "$1" "$server/v1$2" \
        ${LASTBEAT_TOKEN:+--header "Authorization: Bearer $LASTBEAT_TOKEN"} \
        --header 'Content-Type: application/json' ${3:+--data "$3"}
}

# A lane in which silence is noticed soon. What is left out takes its default.
api PUT "/lanes/$lane" '{"heartbeat_interval_seconds": 0.5, "heartbeat_window_seconds": 1.5}' |
    jq --raw-output '"lane \(.lane): silent for \(.policy.heartbeat_window_seconds) s is too long"'

# A run. A key makes it safe to send the request again when its answer was lost.
run=$(curl --silent --show-error --request POST "$server/v1/runs" \
    ${LASTBEAT_TOKEN:+--header "Authorization: Bearer $LASTBEAT_TOKEN"} \
    --header 'Content-Type: application/json' --header "Idempotency-Key: $lane" \
    --data "{\"lane\": \"$lane\", \"goal\": \"$lane-goal\", \"input\": {\"page\": 7}}" | jq --raw-output .run)
echo "created $run"

# An executor takes the next run of the lane; it would wait for one for up to 5 seconds. The attempt and the claim are its
# fencing token: whatever it says of the run later, it says it with these.
claimed=$(api POST /claims "{\"executor\": \"curl-1\", \"lanes\": [\"$lane\"], \"wait_seconds\": 5}")
token=$(echo "$claimed" | jq --compact-output '{attempt, claim}')
echo "$claimed" | jq --raw-output '"claimed by \(.executor), attempt \(.attempt), to work on \(.input | tojson)"'

# It works, and says so.
for _ in 1 2 3; do
    api POST "/runs/$run/heartbeat" "$token" |
        jq --raw-output '"beat: \(.directive), the next one within \(.next_beat_within_seconds) s"'
    sleep 0.4
done
api GET "/goals/$lane-goal" | jq --raw-output '"the goal is \(.status)"'

# It says no more. Nobody has to ask for the run to be reaped.
echo "silent now"
until [ "$(api GET "/runs/$run" | jq --raw-output .status)" = timed_out ]; do
    sleep 0.2
done
api GET "/goals/$lane-goal" | jq --raw-output '"the goal is \(.status)"'

# It comes back, and learns that the run is not its own any more.
api POST "/runs/$run/heartbeat" "$token" |
    jq --raw-output '"refused: \(.status) \(.code), directive \(.directive)"'

# And why?
api GET "/runs/$run/why" | jq --raw-output .message
