// What people see and do in the dashboard, in a real browser. Arguments: the folder with playwright-core, the address of
// the server, the scenario, and what the scenario needs.
import { accessible, assert, base, opened, play, rest, until } from "./browser.mjs";

const clean = (window) => assert.deepEqual(window.seen, []);

// Marks the page; a page that was loaded anew has lost the mark.
const mark = (page) => page.evaluate(() => { window.sameAsBefore = true; });
const isSame = async (page) => assert.equal(await page.evaluate(() => window.sameAsBefore), true, "the page was loaded again");

// A browser without a screen shows every page; so it is told that this one is hidden.
const hide = (page) => page.evaluate(() => {
  Object.defineProperty(document, "hidden", { value: true, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
});

await play({
  // The demo plays beside: from the empty store to the last reap, on one page that is never loaded again.
  async story() {
    const window = await opened(), { page } = window;
    await window.go("/");
    await mark(page);
    const main = (...words) => until(page, `the overview says ${words}`, (all) => all.every((word) => document.querySelector("main").textContent.includes(word)), words);
    await main("Lapses next", "demo", "live");
    await main("victim, attempt 1; the executor crashed or was abandoned");
    const run = await page.evaluate(() => [...document.querySelectorAll(".reaps li")].find((one) => one.textContent.includes("victim")).querySelector("a").getAttribute("href"));
    await main("sleeper, attempt 1; the executor crashed or was abandoned");
    await main("heard of since: probably wrong");
    await main("old-client never sent a heartbeat");
    await main("nobody was there");
    await main("is held since");
    await main("was released");
    await until(page, "all eight of the rack are reaped", () => document.querySelectorAll(".reaps li").length >= 11);
    await until(page, "the hold is over", () => !document.querySelector("main").textContent.includes("is held since"));
    await isSame(page);
    await window.go(run);
    assert.match(await page.locator(".why .message").innerText(), /Heartbeat silent for .*victim/);
    assert.equal(await page.locator(".silence.over").count(), 1);
    assert.match(await page.locator(".mark.m-timed_out text").textContent(), /reaped: heartbeat_silence/);
    clean(window);
  },

  // What cannot be refreshed does not say that it is live; and eight windows of one browser are.
  async stale() {
    const window = await opened(), { page } = window;
    const says = (one, what) => until(one, `it says ${what}`, (words) => document.querySelector("#connection").textContent.includes(words), what);
    await window.go("/");
    await says(page, "live");
    await page.route(`${base}/`, (route) => route.fulfill({ status: 503, body: "" }));
    await says(page, "not refreshed (503); what is shown is as of");
    await page.unroute(`${base}/`);
    await says(page, "live");
    const others = [];
    for (let number = 0; number < 7; number += 1) {
      // Who opens another one does not see those before it any more.
      for (const hidden of [page, ...others]) await hide(hidden);
      const other = await window.context.newPage();
      await other.goto(`${base}/runs`);
      await says(other, "live");
      others.push(other);
    }
  },

  // At ten instants the panel says what the command line said: they come as JSON, [[instant, message], …].
  async scrubber() {
    const [run, told] = [rest[0], JSON.parse(rest[1])];
    const window = await opened(), { page } = window;
    await window.go(`/runs/${run}`);
    await mark(page);
    for (const [at, message] of told) {
      await page.evaluate((micros) => {
        const range = document.querySelector("#scrub");
        range.value = micros;
        range.dispatchEvent(new Event("input", { bubbles: true }));
      }, at.micros);
      await until(page, `the panel speaks of ${at.instant}`, (instant) => document.querySelector(".why").dataset.at === instant, at.instant);
      assert.equal(await page.locator(".why").getAttribute("data-message"), message, at.instant);
      assert.equal(await page.locator("#needle").getAttribute("visibility"), "visible");
    }
    await isSame(page);
    // The instant stands in the address: the same panel after a reload.
    const before = await page.locator(".why").getAttribute("data-message");
    await page.reload();
    assert.equal(await page.locator(".why").getAttribute("data-message"), before);
    // Closer and back again, and what is drawn is another part of the time.
    const drawn = await page.locator("#timeline").getAttribute("data-from");
    await page.getByRole("link", { name: "Closer" }).click();
    await until(page, "a part of the time is drawn", (from) => document.querySelector("#timeline").dataset.from !== from, drawn);
    assert.match(page.url(), /from=.*to=/);
    clean(window);
  },

  async filters() {
    const window = await opened(), { page } = window;
    await window.go("/runs");
    const filter = page.locator("#filter");
    await filter.getByLabel("Lane").fill("beta");
    await filter.getByLabel("Verdict").selectOption("presumed");
    await filter.getByLabel("Label").fill("team=blue");
    await filter.getByLabel("Executor").fill("worker-3");
    await filter.getByLabel("Created since").fill("2h");
    await filter.getByRole("button", { name: "Show" }).click();
    await page.waitForURL(/executor=worker-3/);
    const shown = () => page.evaluate(() => [...document.querySelectorAll("table.runs tbody tr")].map((row) => row.dataset.href));
    const before = await shown();
    assert.equal(before.length, 1);
    await page.reload();
    assert.deepEqual(await shown(), before);
    assert.equal(await filter.getByLabel("Lane").inputValue(), "beta");
    assert.equal(await filter.getByLabel("Verdict").inputValue(), "presumed");
    assert.equal(await filter.getByLabel("Label").inputValue(), "team=blue");
    assert.equal(await filter.getByLabel("Created since").inputValue(), "2h");
    // Pages, one after the other, without a run twice.
    await window.go("/runs?lane=alpha");
    const seen = new Set(await shown());
    assert.equal(seen.size, 50);
    await page.getByRole("link", { name: "Older" }).click();
    await page.waitForURL(/after=/);
    const older = await shown();
    assert.equal(older.length, 10);
    assert.ok(older.every((run) => !seen.has(run)));
    // Nonsense is answered by name.
    const refused = await window.go("/runs?since=yesterday");
    assert.equal(refused.status(), 422);
    assert.match(await page.locator("main").innerText(), /since: `yesterday` is neither an instant/);
    window.seen.splice(0);
  },

  async keys() {
    const window = await opened(), { page } = window;
    await window.go("/runs");
    await page.keyboard.press("/");
    assert.equal(await page.evaluate(() => document.activeElement.id), "search");
    await page.keyboard.type("j?");
    assert.equal(await page.locator("#search").inputValue(), "j?");
    await page.keyboard.press("Escape");
    await page.keyboard.press("j");
    await page.keyboard.press("j");
    await page.keyboard.press("k");
    await page.keyboard.press("j");
    const second = await page.evaluate(() => document.querySelectorAll("tr[data-href]")[1].dataset.href);
    assert.equal(await page.evaluate(() => document.querySelector("tr.here").dataset.href), second);
    await page.keyboard.press("?");
    assert.ok(await page.locator("#help").isVisible());
    await page.keyboard.press("Escape");
    assert.ok(!(await page.locator("#help").isVisible()));
    await page.keyboard.press("Enter");
    await page.waitForURL(base + second);
    await window.go("/lanes");
    await page.keyboard.press("/");
    await page.keyboard.type(second.split("/").pop());
    await page.keyboard.press("Enter");
    await page.waitForURL(base + second);
    // Every control can be reached, and is seen to be.
    await page.keyboard.press("Tab");
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, "none");
    clean(window);
  },

  // Every page, in light and in dark and on a phone: for those too who do not see it. Paths come as arguments.
  async access() {
    for (const options of [{}, { colorScheme: "dark" }, { viewport: { width: 390, height: 800 } }]) {
      const window = await opened(options), { page } = window;
      for (const path of rest) {
        await window.go(path);
        await accessible(page, `${path} ${JSON.stringify(options)}`);
        const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
        assert.ok(overflow <= 0, `${path} is ${overflow} wider than the window, ${JSON.stringify(options)}`);
      }
      window.seen.splice(0, window.seen.length, ...window.seen.filter((what) => !/status of 404/.test(what)));
      clean(window);
    }
  },

  // Names that would do harm if they were taken for markup.
  async names() {
    const window = await opened(), { page } = window;
    for (const path of rest) {
      await window.go(path);
      await page.waitForTimeout(0);
      assert.match(await page.locator("main").innerText(), /<script>/, path);
      assert.equal(await page.evaluate(() => window.harmed), undefined, path);
    }
    // What is put in later is put in the same way.
    await window.go("/");
    await until(page, "the stream came", () => document.querySelector("#connection").textContent === "live");
    await page.waitForResponse((response) => response.url() === `${base}/`);
    assert.equal(await page.evaluate(() => window.harmed), undefined);
    clean(window);
  },

  // An operator, an auditor, and nobody.
  async people() {
    const [operator, auditor, run, other] = rest;
    const window = await opened(), { page } = window;
    const signIn = async (token) => {
      await page.getByLabel("Token").fill(token);
      await page.getByRole("button", { name: "Sign in" }).click();
    };
    await window.go(`/runs/${run}`);
    assert.match(page.url(), /sign-in\?next=/);
    await accessible(page, "sign-in");
    await signIn("lb_wrong");
    assert.match(await page.getByRole("alert").innerText(), /admits nobody/);
    await signIn(auditor);
    await page.waitForURL(`${base}/runs/${run}`);
    assert.equal(await page.getByRole("button", { name: "Cancel" }).count(), 0);
    const cookies = await window.context.cookies();
    assert.ok(cookies.every((one) => one.httpOnly) && cookies.some((one) => one.name === "lastbeat_session" && one.sameSite === "Lax"));
    assert.equal(await page.evaluate(() => document.cookie), "");
    await window.go("/lanes/alpha");
    assert.equal(await page.getByRole("button", { name: "See what it would do" }).count(), 0);
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.waitForURL(/sign-in/);
    await signIn(operator);
    await page.waitForURL(`${base}/`);
    await window.go(`/runs/${run}`);
    // Without a reason the browser asks for one.
    await page.getByRole("button", { name: "Cancel" }).click();
    assert.equal(await page.getByLabel("Why cancel").evaluate((input) => input.validity.valueMissing), true);
    await page.getByLabel("Why cancel").fill("it was <b>wrong</b>");
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.waitForURL(/done=cancel/);
    assert.match(await page.locator("main").innerText(), /olga asked for it to be cancelled .*: it was <b>wrong<\/b>/);
    // A form that was not made here is refused, with the cookie and without its token, and with another's.
    for (const body of ["reason=x", "reason=x&csrf=", `reason=x&csrf=${"0".repeat(64)}`]) {
      const status = await page.evaluate(async ([path, body]) => (await fetch(path, { method: "POST", body, headers: { "content-type": "application/x-www-form-urlencoded" } })).status, [`/runs/${other}/cancel`, body]);
      assert.equal(status, 403, body);
    }
    window.seen.splice(0, window.seen.length, ...window.seen.filter((what) => !/status of 403/.test(what)));
    // A policy: seen before it is set.
    await window.go("/lanes/alpha");
    await page.getByLabel("Coarse window").fill("1ms");
    await page.getByRole("button", { name: "See what it would do" }).click();
    assert.match(await page.locator("#lapsing").innerText(), /60 runs would lapse now/);
    await page.getByRole("link", { name: "Leave it as it is" }).click();
    await page.getByLabel("Heartbeat window").fill("5m");
    await page.getByRole("button", { name: "See what it would do" }).click();
    assert.match(await page.locator("main").innerText(), /Under this policy no open run would lapse now/);
    await page.getByRole("button", { name: "Set this policy" }).click();
    await page.waitForURL(`${base}/lanes/alpha`);
    assert.match(await page.locator("main").innerText(), /Heartbeat window 3m 5m/);
    clean(window);
  },

  // Without a script everything can be read, and asked.
  async plain() {
    const [run, at, message] = rest;
    const window = await opened({ javaScriptEnabled: false }), { page } = window;
    await window.go("/");
    assert.match(await page.locator("main").innerText(), /Lapses next/);
    await window.go(`/runs/${run}`);
    assert.ok(await page.locator(".drawing .ticks").count());
    await page.getByLabel("At", { exact: true }).fill(at);
    await page.getByRole("button", { name: "What was known then?" }).click();
    assert.equal(await page.locator(".why").getAttribute("data-message"), message);
    await page.getByRole("link", { name: "Closer" }).click();
    await page.waitForURL(/from=/);
    assert.ok(await page.locator(".drawing").count());
    clean(window);
  },
});
