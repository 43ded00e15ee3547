// A browser that writes down whatever it should not have seen: errors, violations of the content security policy,
// requests to other origins, dialogs, and pages that were loaded when they should have changed by themselves.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [folder, base, scenario, ...rest] = process.argv.slice(2);
const require = createRequire(`${resolve(folder)}/`);
const { chromium } = require("playwright-core");
const axe = require("fs").readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

export { assert, base, rest, scenario };

// Waiting goes on for so long, in milliseconds: a bound on real processes, not a guess at their speed.
const PATIENCE = 45_000;

const browser = await chromium.launch({
  executablePath: process.env.LASTBEAT_TEST_CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});

// A window of its own, without cookies.
export async function opened(options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const seen = [];
  page.on("console", (message) => { if (message.type() === "error") seen.push(`console: ${message.text()}`); });
  page.on("pageerror", (error) => seen.push(`error: ${error.message}`));
  page.on("dialog", (dialog) => { seen.push(`dialog: ${dialog.message()}`); dialog.dismiss(); });
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.origin !== new URL(base).origin) seen.push(`request to ${url.origin}`);
  });
  if (options.javaScriptEnabled !== false) {
    await context.addInitScript(() => {
      document.addEventListener("securitypolicyviolation", (event) => console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`));
    });
  }
  const go = async (path) => {
    const response = await page.goto(base + path);
    return response;
  };
  // What was seen that a test expects is taken out by it.
  return { page, context, go, seen };
}

// Waits until something holds on the page, and says what was waited for if it never does.
export async function until(page, what, holds, argument) {
  try { await page.waitForFunction(holds, argument, { timeout: PATIENCE, polling: 50 }); }
  catch (error) { throw new Error(`waited in vain until ${what}: ${error.message}\n${(await page.locator("main").innerText()).slice(0, 3000)}`); }
}

// Looks for what keeps people out who do not see, or use no mouse. Only what is serious counts.
export async function accessible(page, where) {
  // By the debugger's way: the policy of the page lets no script in.
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  const serious = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
  const told = serious.map((one) => `${one.id}: ${one.help}\n  ${one.nodes.slice(0, 3).map((node) => `${node.html}\n  ${node.failureSummary}`).join("\n  ")}`);
  assert.deepEqual(told, [], where);
}

// Runs the scenario that was asked for.
export async function play(scenarios) {
  const chosen = scenarios[scenario];
  let code = 0;
  try {
    if (!chosen) throw new Error(`there is no scenario ${scenario}`);
    await chosen();
    console.log(`played ${scenario}`);
  } catch (error) { console.error(error.stack || error); code = 1; }
  await browser.close();
  process.exit(code);
}
