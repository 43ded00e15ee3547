// Opens the overview in a window a few times, sees it stay live, and tells when each was first painted.
//   node paint.mjs FOLDER ADDRESS overview
import { assert, opened, play, until } from "./browser.mjs";

const WINDOWS = 5, LOOKS = 3;

await play({
  async overview() {
    const paints = [];
    for (let window = 0; window < WINDOWS; window++) {
      const { page, context, go, seen } = await opened();
      let looks = 0;
      page.on("response", (response) => { if (new URL(response.url()).pathname === "/" && response.ok()) looks++; });
      await go("/");
      await until(page, "it is painted", () => performance.getEntriesByName("first-contentful-paint").length > 0);
      paints.push(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime));
      await until(page, "it says that it is live", () => document.querySelector("#connection").textContent === "live");
      while (looks <= LOOKS) await page.waitForResponse((response) => new URL(response.url()).pathname === "/");
      assert.deepEqual(seen, []);
      await context.close();
    }
    console.log(JSON.stringify({ paints }));
  },
});
