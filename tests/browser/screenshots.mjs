// Pictures of every page of the dashboard: in light, in dark, and as wide as a phone. Arguments: the folder with
// playwright-core, the program, the folder for the pictures. What is shown is a story that this plays with the program: a
// store with a past of its own, and runs that live, fall silent and are reaped while it looks.
import { spawn, execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const [modules, program, out] = process.argv.slice(2).map((path) => resolve(path));
const { chromium } = createRequire(`${modules}/`)("playwright-core");
const scratch = mkdtempSync(join(tmpdir(), "lastbeat-pictures-"));
const database = `sqlite://${join(scratch, "pictures.db")}`;
const lastbeat = (...words) => JSON.parse(execFileSync(program, ["--database", database, ...words, "-o", "json"], { encoding: "utf8" }) || "null");
const pause = (time) => new Promise((done) => setTimeout(done, time));

// Waits until something holds of the runs of a lane, each by its executor.
async function until(what, lane, holds) {
  for (const end = Date.now() + 45_000; Date.now() < end; await pause(50)) {
    const { runs } = lastbeat("run", "list", "--lane", lane);
    if (holds((executor) => runs.find((one) => one.executor === executor), runs)) return;
  }
  throw new Error(`waited in vain until ${what}`);
}
const children = [];
const start = (...words) => { const child = spawn(program, ["--database", database, ...words], { stdio: "ignore" }); children.push(child); return child; };

// An hour and more of a run with all that can happen to one, ending now.
function past() {
  const lines = [], run = "01a20b5b-02d1-7539-b0a6-7a505afb2013", end = Math.floor(Date.now() / 1000) - 30;
  let version = 0;
  const at = (second) => new Date((end - 3600 + second) * 1000).toISOString().replace("Z", "000Z");
  const fact = (second, rest) => lines.push({ run, version: ++version, recorded_at: at(second), ...rest });
  lines.push({ recorded_at: at(0), type: "policy_set", lane: "watcher", policy_version: 1, policy: { max_attempts: 2 } });
  lines.push({ recorded_at: at(2900), type: "deaf", from: at(2560), to: at(2900), promised_until: at(2572), cause: "gap" });
  fact(1, { type: "created", lane: "watcher", goal: "watch the inbox", labels: { team: "blue" }, input: { inbox: "support", since: "2026-05-03" } });
  fact(20, { type: "claimed", attempt: 1, claim: "b1f0c3de-0c7a-4c59-9d7c-0a1b2c3d4e5f", executor: "mac-7", device: "macbook-air" });
  for (let beat = 1; beat < 38; beat++) fact(20 + beat * 30 + (beat % 5), { type: "heartbeat", attempt: 1, progress: { done: beat, total: 120 } });
  const last = 20 + 37 * 30 + 2;
  fact(last + 181, { type: "timed_out", attempt: 1, rule: "heartbeat_silence", message: "heartbeat silent for 3m 1s (limit 3m): last heard from mac-7, attempt 1; the executor crashed or was abandoned",
    evidence: { rule: "heartbeat_silence", basis: { fact: "heartbeat", version: 39, at: at(last) }, window_seconds: 180, charged_seconds: 181, wall_seconds: 181, deaf_seconds: 0, judged_at: at(last + 181), policy_version: 1, executor: "mac-7", sweeper: "db-1/serve-4" } });
  fact(last + 182, { type: "requeued", next_attempt: 2, not_before: at(last + 192) });
  fact(last + 201, { type: "late_signal", attempt: 1, signal: "heartbeat", executor: "mac-7" });
  fact(last + 260, { type: "claimed", attempt: 2, claim: "7f0ee1aa-52b4-4be0-8e01-3c5a5a4c1d10", executor: "mac-8", device: "mac-mini" });
  for (let second = last + 290; second < 3520; second += 30) if (second < 2560 || second > 2900) fact(second, { type: "heartbeat", attempt: 2, progress: { done: Math.round(second / 30), total: 120, note: "reading" } });
  fact(3560, { type: "completed", attempt: 2, output: { read: 118, answered: 7 }, late: false });
  const file = join(scratch, "past.jsonl");
  writeFileSync(file, lines.map((line) => JSON.stringify(line)).join("\n") + "\n");
  lastbeat("import", file);
  return run;
}

function freePort() {
  return new Promise((done) => { const server = createServer(); server.listen(0, "127.0.0.1", () => { const { port } = server.address(); server.close(() => done(port)); }); });
}

async function story() {
  const run = past();
  lastbeat("lane", "set", "sync", "--heartbeat-interval", "1s", "--heartbeat-window", "12s", "--hold-min", "4");
  lastbeat("lane", "set", "nightly", "--heartbeat-interval", "1s", "--heartbeat-window", "4s", "--max-attempts", "3");
  const port = await freePort();
  start("serve", "--listen", `127.0.0.1:${port}`);
  const goals = ["watch the inbox", "sync photos", "sync notes", "weekly report"];
  const syncs = [1, 2, 3, 4, 5].map((number) => start("exec", "--lane", "sync", "--goal", goals[number % 2 + 1], "--executor", `phone-${number}`, "--", "sleep", "300"));
  const night = start("exec", "--lane", "nightly", "--goal", "weekly report", "--executor", "runner-1", "--", "sleep", "300");
  start("exec", "--lane", "nightly", "--goal", "weekly report", "--executor", "runner-2", "--", "sleep", "300");
  for (const executor of ["old-script", "cron-3"]) lastbeat("run", "create", "--lane", "legacy", "--goal", "watch the inbox", "--claim", executor);
  lastbeat("run", "create", "--lane", "watcher", "--goal", "watch the inbox");
  const live = (run) => run?.verdict === "live" && run.beats > 1;
  await until("both of the night beat", "nightly", (by) => live(by("runner-1")) && live(by("runner-2")));
  night.kill("SIGKILL");
  await until("one of them waits for another attempt", "nightly", (_, runs) => runs.some((run) => run.verdict === "waiting"));
  await until("all that sync beat", "sync", (_, runs) => runs.length === syncs.length && runs.every(live));
  for (const child of syncs.slice(0, 3)) child.kill("SIGKILL");
  await until("three of them went silent", "sync", (_, runs) => runs.filter((run) => run.verdict === "quiet").length === 3);
  return { base: `http://127.0.0.1:${port}`, run };
}

async function pictures({ base, run }) {
  const browser = await chromium.launch({ executablePath: process.env.LASTBEAT_TEST_CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox"] });
  const wide = { viewport: { width: 1280, height: 800 } };
  const kinds = { light: wide, dark: { ...wide, colorScheme: "dark" }, phone: { viewport: { width: 390, height: 800 }, deviceScaleFactor: 2 } };
  const pages = { overview: "/", goals: "/goals", runs: "/runs", run: `/runs/${run}`, lanes: "/lanes", lane: "/lanes/sync", backtest: "/lanes/watcher/backtest?windows=90s,2m,3m,4m,5m,10m", executors: "/executors", refused: "/runs/nothing" };
  for (const [kind, options] of Object.entries(kinds)) {
    const context = await browser.newContext(options), page = await context.newPage();
    for (const [name, path] of Object.entries(pages)) {
      await page.goto(base + path);
      await page.waitForFunction(() => !document.querySelector("#connection") || document.querySelector("#connection").textContent === "live" || !document.querySelector("[data-live]"));
      await page.screenshot({ path: join(out, `${name}-${kind}.png`), fullPage: true });
    }
    await page.goto(`${base}/lanes/sync`);
    await page.getByLabel("Heartbeat window").fill("3s");
    await page.getByRole("button", { name: "See what it would do" }).click();
    await page.screenshot({ path: join(out, `preview-${kind}.png`), fullPage: true });
    await context.close();
  }
  // Those that stand in the book: as much as is seen at first.
  for (const [name, path, options] of [["overview", "/", wide], ["run", pages.run, wide], ["run-phone", pages.run, { viewport: { width: 390, height: 760 }, colorScheme: "dark" }]]) {
    const page = await (await browser.newContext(options)).newPage();
    await page.goto(base + path);
    await page.waitForFunction(() => document.querySelector("#connection").textContent === "live");
    await page.screenshot({ path: join(out, `book-${name}.png`) });
  }
  await browser.close();
}

mkdirSync(out, { recursive: true });
let code = 0;
try { await pictures(await story()); } catch (error) { console.error(error); code = 1; }
for (const child of children) child.kill("SIGKILL");
rmSync(scratch, { recursive: true, force: true });
process.exit(code);
