// A tour of the API with nothing but fetch: a run is made, claimed and heard of; then its executor falls silent, the run
// is reaped, the executor is fenced, and anyone can read why.
//
//     lastbeat serve &
//     npx --package typescript tsc --project docs/api --outDir /tmp/tour && node /tmp/tour/tour.mjs [http://127.0.0.1:7171]
//
// LASTBEAT_TOKEN: a token, where the server has any. It takes one that may do it all: role admin.

import { randomUUID } from "node:crypto";

const server = process.argv[2] ?? "http://127.0.0.1:7171";

/** The fencing token: whatever an executor says of its run, it says it with these. */
type Fence = { attempt: number; claim: string };
type Policy = { heartbeat_interval_seconds: number; heartbeat_window_seconds: number };
type Lane = { lane: string; policy: Policy };
type Run = Fence & { run: string; status: string; executor: string; input?: unknown };
type Heard = { directive: "continue" | "cancel" | "stop"; next_beat_within_seconds: number };
type Goal = { goal: string; status: string };
type Why = { message: string };
/** What a refusal says; programs can rely on its `code`. */
type Problem = { status: number; code: string; detail: string; directive?: Heard["directive"] };

class Refused extends Error {
    constructor(readonly problem: Problem) {
        super(problem.detail);
    }
}

/**
 * Calls the API and returns the document that it answers with; undefined where there is none. With a key the request may
 * be sent again when its answer was lost: it gets the first answer.
 */
async function api<T>(method: string, path: string, body?: unknown, key?: string): Promise<T> {
    const headers: Record<string, string> = { "Content-Type": "application/json" };
    const token = process.env["LASTBEAT_TOKEN"];
    if (token) headers["Authorization"] = `Bearer ${token}`;
    if (key) headers["Idempotency-Key"] = key;
    const response = await fetch(`${server}/v1${path}`, {
        method,
        headers,
        body: body === undefined ? null : JSON.stringify(body),
    });
    if (!response.ok) throw new Refused((await response.json()) as Problem);
    const text = await response.text();
    return (text ? JSON.parse(text) : undefined) as T;
}

const seconds = (wait: number) => new Promise((resolve) => setTimeout(resolve, 1000 * wait));

async function main(): Promise<void> {
    const lane = `tour-${randomUUID().slice(0, 8)}`;
    const goal = `${lane}-goal`;

    // A lane in which silence is noticed soon. What is left out takes its default.
    const short: Policy = { heartbeat_interval_seconds: 0.5, heartbeat_window_seconds: 1.5 };
    const { policy } = await api<Lane>("PUT", `/lanes/${lane}`, short);
    console.log(`lane ${lane}: silent for ${policy.heartbeat_window_seconds} s is too long`);

    const { run } = await api<Run>("POST", "/runs", { lane, goal, input: { page: 7 } }, randomUUID());
    console.log(`created ${run}`);

    // An executor takes the next run of the lane; it would wait for one for up to 5 seconds.
    const wanted = { executor: "node-1", lanes: [lane], wait_seconds: 5 };
    const claimed = await api<Run>("POST", "/claims", wanted, randomUUID());
    const fence: Fence = { attempt: claimed.attempt, claim: claimed.claim };
    console.log(
        `claimed by ${claimed.executor}, attempt ${claimed.attempt}, to work on ${JSON.stringify(claimed.input)}`,
    );

    // It works, and says so.
    for (let beat = 1; beat <= 3; beat++) {
        const heard = await api<Heard>("POST", `/runs/${run}/heartbeat`, fence);
        console.log(`beat: ${heard.directive}, the next one within ${heard.next_beat_within_seconds} s`);
        await seconds(0.4);
    }
    console.log(`the goal is ${(await api<Goal>("GET", `/goals/${goal}`)).status}`);

    // It says no more. Nobody has to ask for the run to be reaped.
    console.log("silent now");
    while ((await api<Run>("GET", `/runs/${run}`)).status !== "timed_out") await seconds(0.2);
    console.log(`the goal is ${(await api<Goal>("GET", `/goals/${goal}`)).status}`);

    // It comes back, and learns that the run is not its own any more.
    try {
        await api<Heard>("POST", `/runs/${run}/heartbeat`, fence);
    } catch (error) {
        if (!(error instanceof Refused)) throw error;
        const { status, code, directive } = error.problem;
        console.log(`refused: ${status} ${code}, directive ${directive}`);
    }

    // And why?
    console.log((await api<Why>("GET", `/runs/${run}/why`)).message);
}

await main();
