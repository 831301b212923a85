// Writes the hashes of style and script into the page's Content-Security-Policy; with --check only
// says whether they are right.
import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const PAGE = new URL("../../runtime/serve/src/http/page.html", import.meta.url);

/** The page with the hashes that its style and script have. */
export function withHashes(page) {
  const hash = (tag) => {
    const [, text] = new RegExp(`<${tag}>([^]*?)</${tag}>`).exec(page);
    return `${tag}-src 'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  };
  return page
    .replace(/script-src 'sha256-[^']*'/, hash("script"))
    .replace(/style-src 'sha256-[^']*'/, hash("style"));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const page = readFileSync(PAGE, "utf8");
  const right = withHashes(page);
  if (page !== right) {
    if (process.argv.includes("--check")) {
      console.error("the policy's hashes are not of this style and script; run policy.mjs");
      process.exit(1);
    }
    writeFileSync(PAGE, right);
  }
}
